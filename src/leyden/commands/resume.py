"""`leyden resume RUN|SWEEP`: continue from the last complete checkpoint of a directory, on any machine."""

import shlex
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from leyden.commands.arguments import Arguments
from leyden.config.check import check
from leyden.config.compose import override
from leyden.config.hydra_node import SHELL
from leyden.config.locations import project_root
from leyden.console import put
from leyden.errors import UserError
from leyden.launch.start import start
from leyden.run.directory import Run, name_below_runs
from leyden.run.find import find_run, find_sweep, refuse_links
from leyden.run.summary import print_results

# keys that may differ from the frozen config: where and how fast a run trains, not what it learns
MACHINE_KEYS = ("accelerator", "accumulate", "compile", "precision", "profile", "strict_code", "threads", "timeout")
TRAINER_KEYS = ("accelerator", "benchmark", "deterministic", "devices", "num_nodes", "strategy", "sync_batchnorm")
# keys whose earlier overrides remain in force if another accelerator is chosen, because they determine the numerics
PRESERVED_KEYS = ("precision", "trainer.benchmark", "trainer.deterministic", "trainer.sync_batchnorm")
# Hydra's keys that are restored from a sweep's folder, except those that may be commands
RESTORED_PREFIXES = ("hydra.sweeper.", "hydra.launcher.")


def main(arguments: list[str]) -> int:
    """Resume a run or a sweep, unless the run is finished."""
    options = _parser().parse_intermixed_args(arguments)
    arguments = [options.run, *options.overrides, *(["--retry"] if options.retry else [])]
    names = [argument for argument in arguments if "=" not in argument and argument != "--retry"]
    if len(names) == 1 and (folder := find_sweep(names[0]) or _sweep_of_last(names[0])):
        return resume_sweep(folder, [argument for argument in arguments if argument not in names])
    if len(names) != 1:
        raise UserError(
            "leyden resume takes one run or sweep: a path, last, or part of a name; see leyden rerun for overrides"
        )
    if "--retry" in arguments:
        raise UserError(f"--retry is for sweeps, but {names[0]} is not a sweep")
    run, overrides = find_run(names[0]), [argument for argument in arguments if "=" in argument]
    for item in overrides:
        key = item.partition("=")[0].lstrip("+")
        if item == "accelerator=slurm":
            raise UserError(f"{item}: leyden submit {names[0]} submits a run to SLURM with its earlier resources")
        if key not in MACHINE_KEYS and key.removeprefix("trainer.") not in TRAINER_KEYS:
            raise UserError(
                f"{item}: a resumed run keeps its config, except for its machine: {', '.join(MACHINE_KEYS)} and "
                f"trainer.{{{','.join(TRAINER_KEYS)}}}; leyden rerun takes every override"
            )
    if run.status.get("state") == "finished":
        put(f"{run.name} is finished: nothing left to do")
        return 0
    if not overrides:
        check(run.composition())
        print_results(run, start(run).results)
        return 0
    overrides += _settings_to_keep(run, overrides)
    composition = override(run.manifest.get("raw") or run.config, overrides)
    time = datetime.now().astimezone().isoformat(timespec="seconds")
    run.update_manifest(resumed=[*run.manifest.get("resumed", []), {"time": time, "overrides": overrides}])
    print_results(run, start(run, composition.config).results)
    return 0


def _sweep_of_last(name: str) -> Path | None:
    """Return the sweep to continue if `last` is one of its runs; other commands take the run itself."""
    if name != "last" or (run := find_run(name)).sweep is None:
        return None
    put(f"the last run is {run.name}, of a sweep: resuming {name_below_runs(run.path.parent)}")
    return run.path.parent


def _parser() -> Arguments:
    parser = Arguments("resume", "Continue a run or a sweep from its last complete checkpoints.")
    parser.add_argument("run", metavar="RUN|SWEEP", help="a path, last, or a unique part of a name")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help=f"of a run: another machine, {', '.join(MACHINE_KEYS)} and trainer.{{{','.join(TRAINER_KEYS)}}}; "
        "of a sweep: hydra.sweeper.n_trials, n_jobs and retries",
    )
    parser.add_argument("--retry", action="store_true", help="run the failed trials of a sweep again")
    return parser


def _settings_to_keep(run: Run, overrides: list[str]) -> list[str]:
    """Return the run's overrides that a newly chosen accelerator must not replace; print those that it replaces."""
    accelerator = next((item for item in overrides if item.startswith("accelerator=")), None)
    new_keys = {_key(item) for item in overrides}
    earlier_overrides = run.manifest.get("overrides") or [] if accelerator else []
    kept_overrides = [item for item in earlier_overrides if _key(item) not in new_keys]
    device_keys = [f"trainer.{key}" for key in TRAINER_KEYS if f"trainer.{key}" not in PRESERVED_KEYS]
    if replaced_overrides := [item for item in kept_overrides if _key(item) in device_keys]:
        keys = ", ".join(replaced_overrides)
        put(f"{accelerator} replaces the run's earlier {keys}: repeat the overrides that should stay")
    return [item for item in kept_overrides if _key(item) in PRESERVED_KEYS]


def resume_sweep(folder: Path, arguments: list[str]) -> int:
    """Continue a sweep with the same arguments; `--retry` runs failed trials again."""
    from leyden.launch.hydra import multirun
    from leyden.sweep import plan
    from leyden.sweep.directory import Sweep

    overrides = [argument for argument in arguments if argument != "--retry"]
    for item in overrides:
        if _key(item) not in plan.CHANGEABLE_KEYS and _may_be_restored(item):
            raise UserError(f"{item}: a resumed sweep keeps its config, except for {', '.join(plan.CHANGEABLE_KEYS)}")
    refuse_links(folder)
    interrupted_sweep = Sweep(folder)
    config = interrupted_sweep.config
    _check_project(folder, config)
    new_keys = {_key(item) for item in overrides}
    earlier_overrides = [item for item in plan.original_arguments(config) if _key(item) not in new_keys]
    if command := next((item for item in earlier_overrides if not _may_be_restored(item)), None):
        raise UserError(
            f"{folder} was started with {command}, which is not taken from a folder, because it may run commands: if "
            f"it is yours, repeat it: leyden resume {shlex.quote(str(folder))} {shlex.quote(command)}"
        )
    if interrupted_sweep.uses_leyden_sweeper and interrupted_sweep.settings.storage is not None:
        _ = interrupted_sweep.study  # fails if it does not exist: a folder alone must not create a database
    if "--retry" in arguments:
        interrupted_sweep.retry()
    return multirun([*earlier_overrides, plan.folder_override(str(folder)), *overrides])


def _key(item: str) -> str:
    return item.lstrip("+~").partition("=")[0]


def _may_be_restored(item: str) -> bool:
    """Return whether an override may be taken from a sweep's folder, which may belong to somebody else."""
    key = _key(item)
    if not key.startswith("hydra"):
        return True
    is_shell = key.removeprefix("hydra.launcher.").partition(".")[0] in SHELL
    return key in ("hydra/launcher", "hydra/sweeper") or (key.startswith(RESTORED_PREFIXES) and not is_shell)


def _check_project(folder: Path, config: DictConfig) -> None:
    """Refuse a sweep of another project: the user decides whose code is loaded, not the folder."""
    directory = OmegaConf.select(config, "hydra.runtime.cwd")
    if not isinstance(directory, str) or OmegaConf.select(config, "hydra.overrides.task") is None:
        raise UserError(f"{folder}/multirun.yaml is damaged: the directory or the overrides of the sweep are missing")
    if not Path(directory).is_dir():
        raise UserError(f"{folder} was started in {directory}, which no longer exists")
    if not Path(directory).is_absolute() or project_root(directory) != project_root():
        raise UserError(
            f"{folder} was started in {directory}, and continues with the project there: if it is yours, cd "
            f"{shlex.quote(directory)} and leyden resume {shlex.quote(str(folder))}"
        )
