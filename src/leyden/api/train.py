"""`leyden.train` and `leyden.compose`: what the commands `train` and `check` do, as functions."""

from collections.abc import Sequence
from pathlib import Path

from leyden.api.process import errors_in_one_line
from leyden.api.run import Run, work_on
from leyden.config import compose as composing
from leyden.config.composition import Composition
from leyden.config.run_config import RunConfig
from leyden.errors import UserError
from leyden.launch import slurm
from leyden.launch.start import run_before_restart
from leyden.run import directory
from leyden.run.freeze import freeze


def train(overrides: Sequence[str] = ()) -> Run:
    """Train a run as `leyden train` does, and return it: `leyden.train(["model=convnet", "data=digits"])`.

    The run trains in processes of its own, as many as the config asks for, so it leaves this process as it was. In a
    script that torchrun or srun starts, every rank calls this, trains as one rank of the run, and gets the run.

    Raises:
        UserError: if the config is wrong, before torch is imported.
        RunError: if the run fails.
        KeyboardInterrupt: if it is interrupted; the message says how it is resumed.
    """
    with errors_in_one_line():
        return work_on(lambda: _make_run(overrides))


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked config that `leyden.train` would train: a plain dict, without `${…}`.

    Raises:
        UserError: one line for each mistake; torch is not imported.
    """
    with errors_in_one_line():
        return _compose(overrides).config


def _make_run(overrides: Sequence[str]) -> directory.Run:
    if earlier_path := run_before_restart():
        return directory.Run(earlier_path)
    composition = _compose(overrides)
    if slurm.is_requested(composition):
        raise UserError("leyden.train trains on this machine: the command leyden train submits to SLURM's queue")
    directory.cli_arguments[:] = ["train", *overrides]  # recorded as the command that makes the same run
    try:
        return freeze(composition, Path(composition.run_dir) if composition.run_dir else None)
    finally:
        directory.cli_arguments.clear()


def _compose(overrides: Sequence[str]) -> Composition:
    if isinstance(overrides, str):
        raise UserError(f"{overrides!r}: overrides are a list of texts: {overrides.split()}")
    if flags := [item for item in overrides if item.startswith("-")]:
        raise UserError(
            f"{flags[0]} is for the command line: in Python, call leyden.train for each point of a sweep, or start it "
            "with the command leyden train -m; leyden.runs(SWEEP) lists its runs"
        )
    return composing.compose(list(overrides))
