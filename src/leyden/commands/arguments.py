"""The arguments of a command: argparse, with errors told in leyden's way."""

import argparse
from typing import NoReturn

from leyden.errors import UserError


class Arguments(argparse.ArgumentParser):
    """A parser that raises UserError for a wrong request."""

    def __init__(self, command: str, does: str) -> None:
        super().__init__(prog=f"leyden {command}", description=does, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the help is."""
        raise UserError(f"{self.prog}: {message}; {self.prog} --help says what it takes")
