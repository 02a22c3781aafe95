"""Functions and commands that are called in a forked child, so that each begins as a new process does."""

import faulthandler
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable


def forked(function: Callable, *arguments: object) -> int:
    """Call a function in a forked child; return its exit code, negative when a signal ended it."""
    child = multiprocessing.get_context("fork").Process(target=_call, args=(function, *arguments))
    child.start()
    try:
        child.join()
    finally:
        if child.exitcode is None:  # pytest has lost its patience: the child prints where it stands, and ends
            os.kill(child.pid, signal.SIGABRT)
            child.join()
    return child.exitcode


def _call(function: Callable, *arguments: object) -> None:
    faulthandler.enable(sys.__stderr__)  # which pytest shows beside a failure
    code = function(*arguments)
    os._exit(code if isinstance(code, int) else 0)


def cli(*arguments: str) -> int:
    """Run a leyden command in a forked child; return its exit code."""
    from leyden.cli import main

    return forked(main, list(arguments))
