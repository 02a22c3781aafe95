"""leyden's SLURM launcher for Hydra: the jobs of a multirun become one job array."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

if TYPE_CHECKING:
    from leyden.run.directory import Run

# Hydra imports this module whenever it composes, so leyden's modules are imported where they are used


class SlurmLauncher(Launcher):
    """Freezes each job's config and the code, submits the jobs together, and waits for results if `wait` is set."""

    def __init__(self, **options: Any) -> None:
        self._code: list[Path] | None = None  # the copy of the code, which all batches of a sweep share

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's context and config."""
        self._context = hydra_context
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit a batch of jobs; each returns its run's result, or None if it is not waited for."""
        from leyden.config.composition import to_dict
        from leyden.launch import queue, slurm, slurm_script
        from leyden.launch.hydra import freeze_job

        setup_globals()
        options = slurm_script.Options.from_config(to_dict(self._config.hydra.launcher, resolve=True))
        configs = [self._job_config(number, o) for number, o in enumerate(job_overrides, initial_job_idx)]
        slurm.check(options, [{"trainer": to_dict(config.trainer, resolve=True)} for config in configs])
        frozen = [
            run_job(freeze_job, config, "hydra.sweep.dir", "hydra.sweep.subdir", self._context) for config in configs
        ]
        runs = [job.return_value for job in frozen]
        self.submit(runs)
        needs_results = self._config.hydra.sweeper._target_ != "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
        results = queue.results(runs) if options.wait or needs_results else {}
        for job, run in zip(frozen, runs, strict=True):
            result = results.get(run.path)
            job.status = JobStatus.FAILED if isinstance(result, Exception) else JobStatus.COMPLETED
            job.return_value = result
        return frozen

    def submit(self, runs: "list[Run]") -> None:
        """Put runs of the sweep into the queue, as arrays."""
        from leyden.config.composition import to_dict
        from leyden.launch import queue, slurm, slurm_script

        options = slurm_script.Options.from_config(to_dict(self._config.hydra.launcher, resolve=True))
        slurm.check(options, [run.config for run in runs])
        folder = Path(self._config.hydra.sweep.dir).resolve()
        self._code = self._code or slurm.copy_code(folder, options)
        queue.announce(slurm.submit(runs, folder, options, self._code), folder, len(runs))

    def _job_config(self, number: int, overrides: Sequence[str]) -> DictConfig:
        config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        return config
