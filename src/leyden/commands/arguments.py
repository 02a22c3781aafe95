"""The arguments of a command: argparse, with leyden's errors and the arguments that several commands share."""

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from leyden.errors import UserError


class Arguments(argparse.ArgumentParser):
    """A parser that raises UserError for a wrong request."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"leyden {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError that refers to the command's help."""
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")

    def add_run(self) -> None:
        """Add the argument RUN."""
        self.add_argument("run", metavar="RUN", help="a path, last, or a unique part of a run's name")

    def add_runs(self) -> None:
        """Add the argument RUN|SWEEP, which may be repeated."""
        self.add_argument(
            "runs", nargs="+", metavar="RUN|SWEEP", help="runs, or sweeps, which stand for all their runs"
        )

    def add_checkpoint(self) -> None:
        """Add the option --checkpoint, which chooses a checkpoint of the run."""
        self.add_argument("--checkpoint", metavar="best|last|step-N", help="by default the best, else the last")

    def add_overrides(self, *, multirun: bool = False) -> None:
        """Add the overrides of a config and, if the command takes sweeps as well, the flag -m."""
        self.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides as in leyden train")
        if multirun:
            self.add_argument("-m", "--multirun", action="store_true", help="a sweep, as in leyden train -m")


def check_output(option: str, path: Path, suffixes: Collection[str]) -> None:
    """Check that an output file can be written; to be called before the work begins.

    Raises:
        UserError: if its suffix is not in `suffixes`, it is a folder, or its folder does not exist.
    """
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{option}={path}: the name should end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UserError(f"{option}={path} is a folder")
    if not path.parent.is_dir():
        raise UserError(f"{option}={path}: there is no folder {path.parent}")
