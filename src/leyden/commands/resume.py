"""`leyden resume RUN`: go on from the last whole checkpoint, with nothing but the directory; on another machine too."""

import shlex
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from leyden.config.check import check
from leyden.config.compose import override
from leyden.config.composition import Composition
from leyden.config.hydra_node import SHELL
from leyden.console import put
from leyden.errors import UserError
from leyden.launch.start import start
from leyden.run.directory import Run
from leyden.run.find import find_run, find_sweep, refuse_links
from leyden.run.summary import print_results

# what may differ from the frozen config: where a run trains and how fast, not what it is to learn
MACHINE = ("accelerator", "accumulate", "compile", "precision", "profile", "strict_code", "threads", "timeout")
TRAINER = ("accelerator", "benchmark", "deterministic", "devices", "num_nodes", "strategy", "sync_batchnorm")
# what a newly chosen accelerator leaves as it was set by hand: how numbers are computed, not how many devices there are
KEPT = ("precision", "trainer.benchmark", "trainer.deterministic", "trainer.sync_batchnorm")
# what of Hydra's config is taken from a sweep's folder, and what below it is not: it may be a command
STORED = ("hydra.sweeper.", "hydra.launcher.")


def main(arguments: list[str]) -> int:
    """Resume one run; a finished one has nothing left to do."""
    names = [argument for argument in arguments if "=" not in argument and argument != "--retry"]
    if len(names) == 1 and (folder := find_sweep(names[0])):
        return sweep(folder, [argument for argument in arguments if argument not in names])
    if len(names) != 1 or arguments[0].startswith("-"):
        raise UserError("leyden resume takes one run or sweep: a path, last, or part of a name; rerun takes overrides")
    if "--retry" in arguments:
        raise UserError(f"--retry is for sweeps, which {names[0]} is not")
    run, overrides = find_run(names[0]), [argument for argument in arguments if "=" in argument]
    for item in overrides:
        key = item.partition("=")[0].lstrip("+")
        if item == "accelerator=slurm":
            raise UserError(f"{item}: leyden submit {names[0]} puts a run into the queue, in the shape that it had")
        if key not in MACHINE and key.removeprefix("trainer.") not in TRAINER:
            raise UserError(
                f"{item}: a resumed run learns as it began; what may change is its machine, {', '.join(MACHINE)} and "
                f"trainer.{{{','.join(TRAINER)}}}; leyden rerun takes every override"
            )
    if run.status.get("state") == "finished":
        put(f"{run.name} is finished: nothing left to do")
        return 0
    if not overrides:
        frozen = run.config
        check(Composition(frozen, frozen))
        print_results(run, start(run).results)
        return 0
    overrides += _settings_to_keep(run, overrides)
    moved = override(run.manifest.get("raw") or run.config, overrides)
    when = datetime.now().astimezone().isoformat(timespec="seconds")
    run.update_manifest(resumed=[*run.manifest.get("resumed", []), {"time": when, "overrides": overrides}])
    print_results(run, start(run, moved.config).results)
    return 0


def _settings_to_keep(run: Run, overrides: list[str]) -> list[str]:
    """Return the overrides of the run that a newly chosen accelerator must not replace; print those that it does."""
    accelerator = next((item for item in overrides if item.startswith("accelerator=")), None)
    new_keys = {_key(item) for item in overrides}
    by_hand = [item for item in run.manifest.get("overrides") or [] if accelerator and _key(item) not in new_keys]
    shape = [f"trainer.{key}" for key in TRAINER if f"trainer.{key}" not in KEPT]
    if replaced := [item for item in by_hand if _key(item) in shape]:
        keys = ", ".join(replaced)
        put(f"{accelerator} replaces {keys}, which the run was started with: write what is to stay once more")
    return [item for item in by_hand if _key(item) in KEPT]


def sweep(folder: Path, arguments: list[str]) -> int:
    """Go on with a sweep, with the same arguments; `--retry` gives what failed another try."""
    from leyden.launch.hydra import multirun
    from leyden.sweep import plan
    from leyden.sweep.directory import Sweep

    overrides = [argument for argument in arguments if argument != "--retry"]
    for item in overrides:
        if _key(item) not in plan.CHANGEABLE and _may_be_stored(item):
            raise UserError(f"{item}: a sweep goes on as it began; what may change is {', '.join(plan.CHANGEABLE)}")
    refuse_links(folder)
    begun_sweep = Sweep(folder)
    config = begun_sweep.config
    _check_place(folder, config)
    earlier_overrides = [item for item in plan.original_arguments(config) if item not in overrides]
    if command := next((item for item in earlier_overrides if not _may_be_stored(item)), None):
        raise UserError(
            f"{folder} was begun with {command}, which is not taken from a folder, for it may run commands: if it is "
            f"yours, write it once more: leyden resume {shlex.quote(str(folder))} {shlex.quote(command)}"
        )
    if begun_sweep.is_own and begun_sweep.settings.storage is not None:
        _ = begun_sweep.study  # it must exist: a folder alone must not create a database
    if "--retry" in arguments:
        begun_sweep.retry()
    return multirun([*earlier_overrides, plan.folder_override(str(folder)), *overrides])


def _key(item: str) -> str:
    return item.lstrip("+~").partition("=")[0]


def _may_be_stored(item: str) -> bool:
    """Whether an override is taken from a sweep's folder, which may be somebody else's; the others are typed again."""
    key = _key(item)
    if not key.startswith("hydra"):
        return True
    is_shell = key.removeprefix("hydra.launcher.").partition(".")[0] in SHELL
    return key in ("hydra/launcher", "hydra/sweeper") or (key.startswith(STORED) and not is_shell)


def _check_place(folder: Path, config: DictConfig) -> None:
    """Refuse to go on with another project than the one here: the user says whose code is loaded, not the folder."""
    directory = OmegaConf.select(config, "hydra.runtime.cwd")
    if not isinstance(directory, str) or OmegaConf.select(config, "hydra.overrides.task") is None:
        raise UserError(f"{folder}/multirun.yaml is damaged: it does not say where, or with what, the sweep was begun")
    if not Path(directory).is_dir():
        raise UserError(f"{folder} was begun in {directory}, which is not there any more")
    if Path(directory) != Path.cwd():
        raise UserError(
            f"{folder} was begun in {directory}, and goes on with the project there: if it is yours, cd "
            f"{shlex.quote(directory)} and leyden resume {shlex.quote(str(folder))}"
        )
