"""Runs a wrong request, which leyden must refuse in one line."""

import pytest

from leyden.cli import main

WRONG_REQUEST = 2  # exit code


def refused(capfd: pytest.CaptureFixture, *arguments: str) -> str:
    """Run a command that is a wrong request; return the one line of the error."""
    capfd.readouterr()
    assert main(list(arguments)) == WRONG_REQUEST
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("leyden: ")
