"""Calls functions and commands in a forked child, so that each starts like a new process."""

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
        if child.exitcode is None:  # pytest's timeout: the child prints its stack and ends
            os.kill(child.pid, signal.SIGABRT)
            child.join()
    return child.exitcode


def _call(function: Callable, *arguments: object) -> None:
    faulthandler.enable(sys.__stderr__)  # pytest shows this stream with a failure
    code = function(*arguments)
    os._exit(code if isinstance(code, int) else 0)


def cli(*arguments: str) -> int:
    """Run a leyden command in a forked child; return its exit code."""
    from leyden.cli import main

    return forked(main, list(arguments))
