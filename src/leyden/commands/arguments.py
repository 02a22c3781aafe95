"""The arguments of a command: argparse, with leyden's errors and the arguments that several commands share."""

import argparse
from typing import NoReturn

from leyden.errors import UserError


class Arguments(argparse.ArgumentParser):
    """A parser that raises UserError for a wrong request."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"leyden {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the help is."""
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")

    def add_run(self) -> None:
        """Add the name of a run."""
        self.add_argument("run", metavar="RUN", help="a path, last, or a unique part of a run's name")

    def add_runs(self) -> None:
        """Add the names of runs and sweeps."""
        self.add_argument(
            "runs", nargs="+", metavar="RUN|SWEEP", help="runs, or sweeps, which stand for all their runs"
        )

    def add_checkpoint(self) -> None:
        """Add the choice of one of a run's checkpoints."""
        self.add_argument("--checkpoint", metavar="best|last|step-N", help="by default the best, else the last")
