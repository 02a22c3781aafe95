"""The start of a sweep: check its configs, make its folder, choose the workers."""

import math
import sys
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from leyden import git
from leyden.config.locations import project_root
from leyden.console import complain
from leyden.distributed.world import detect_world
from leyden.errors import UserError
from leyden.files import unused_path
from leyden.launch import slurm
from leyden.launch.hydra import freeze_job, train_job
from leyden.run import project_code
from leyden.run.directory import Run, runs_root
from leyden.sweep.directory import Sweep
from leyden.sweep.jobs import Batches, Job, Processes, Queue
from leyden.sweep.plan import Plan
from leyden.sweep.search import Search

MAX_CODE_MB = 200
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def start(context: HydraContext, task: TaskFunction, master: DictConfig, arguments: list[str]) -> Any:
    """Start a sweep, or resume the one in its folder.

    Return the results of each batch of jobs if a Hydra launcher trained them, else None.

    Raises:
        UserError: for an invalid request, before anything is trained.
        Interrupted: if a signal stopped it; its runs have saved checkpoints.
    """
    setup_globals()
    plan = Plan(context.config_loader, master, arguments)
    plan.build()
    makes_runs, has_begun = task is train_job, (Path(str(master.hydra.sweep.dir)) / "study").exists()
    if makes_runs:
        configs = [composition.config for composition in plan.check(only_one=has_begun)]
        objectives = plan.settings.objectives(configs[0])
        for config in configs:
            if (other_objectives := plan.settings.objectives(config)) != objectives:
                raise UserError(
                    f"the points have the objectives {objectives[0].metric} and {other_objectives[0].metric}: choose "
                    "one, hydra.sweeper.objective=… hydra.sweeper.direction=…"
                )
        names = {job["name"] for job in configs}
        plan.choose_folder(names.pop() if len(names) == 1 else "multirun")
    else:
        objectives = plan.settings.returned_objectives()
    sweep = Sweep(Path(str(master.hydra.sweep.dir)))
    try:
        sweep.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"hydra.sweep.dir={sweep.path} cannot be made: {error.strerror}") from error
    with sweep.lock():
        plan.save_config(sweep)
        if not has_begun:
            plan.warn_of_single_job()
        if not makes_runs and plan.settings.is_grid:
            sweep.set_journal_aside()  # without runs, finished points are unknown, so the grid starts again
        plan.record_files(sweep.begin(objectives, plan.jobs))
        workers = choose_workers(context, task, plan, sweep)
        Search(sweep, plan, workers).run()
    return workers.job_returns if isinstance(workers, Batches) else None


def choose_workers(context: HydraContext, task: TaskFunction, plan: Plan, sweep: Sweep) -> Any:
    """Choose the workers by the launcher, and by whether the task makes runs."""

    def freeze(job: Job) -> Run:
        config = plan.compose(job.overrides, job.number)
        job_return = run_job(freeze_job, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
        if job_return.status == JobStatus.FAILED:
            raise job_return._return_value  # reading `JobReturn.return_value` would print a line first
        return job_return.return_value

    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=plan.master)
    node, settings, makes_runs = plan.master.hydra.launcher, plan.settings, task is train_job
    default_size = math.inf if settings.is_grid else 1
    if makes_runs and node._target_ == slurm.LAUNCHER:
        waits_for_jobs = bool(node.wait or settings.n_jobs or not settings.is_grid)
        return Queue(launcher, freeze, settings.n_jobs or default_size, waits_for_jobs)
    if makes_runs and node._target_ == BASIC_LAUNCHER and detect_world() is None:
        keep_code(sweep)
        return Processes(freeze, settings.n_jobs or 1)
    return Batches(launcher, settings.n_jobs or default_size, lambda: sweep.runs() if makes_runs else {})


def keep_code(sweep: Sweep) -> None:
    """Copy the project's code, and have the jobs import the copy.

    Outside a git repository it is unknown which files belong to the project, so none are copied.
    """
    project, project_copy = project_root(), unused_path(sweep.path / "code")
    try:
        if project_code.in_git(project):
            code_paths = project_code.copy_code(project, project_copy, runs_root().resolve(), MAX_CODE_MB)
        elif any((folder / ".git").exists() for folder in (project, *project.parents)):
            raise UserError(f"git lists no files of {project}")
        else:
            return
    except (UserError, OSError) as error:
        complain(f"{error}; so edits during the sweep reach the jobs that start later")
        return
    search_path = [p for entry in sys.path for p in (*_folder_in_copy(entry, project, project_copy), entry)]
    sys.path[:] = dict.fromkeys([*search_path, *map(str, code_paths)])
    git.states[project] = git.state(project)


def _folder_in_copy(entry: str, project: Path, project_copy: Path) -> list[str]:
    """Return the copy of a folder on the search path, if the folder is in the project."""
    folder = Path(entry).resolve()
    folder_copy = project_copy / folder.relative_to(project) if folder.is_relative_to(project) else None
    return [str(folder_copy)] if folder_copy and folder_copy.is_dir() else []
