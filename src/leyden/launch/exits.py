"""Reasons for the end of a process that raised no error of leyden's: a full disk, `sys.exit`, `os._exit`."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from leyden.config.locations import relative_to_cwd
from leyden.config.user_code import place_in_user_code
from leyden.errors import CheckpointError, RunError
from leyden.run.directory import Run

FULL = (errno.ENOSPC, errno.EDQUOT)


class ExitError(RunError):
    """The project's code or a library has ended the process. The exit code is the process's, or 1 for 0."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code or 1


def silent(exit_code: int) -> ExitError:
    """Return the error of a process that has ended with an exit code and left no other reason."""
    return ExitError(f"exited with code {exit_code} and left no error message", exit_code)


def reason_of(run: Run, error: BaseException) -> BaseException:
    """Return an error that says in one line how a full disk or `sys.exit` ended a run, or else `error`."""
    if isinstance(error, OSError) and error.errno in FULL:
        where = relative_to_cwd(Path(error.filename)) if isinstance(error.filename, str) else relative_to_cwd(run.path)
        return RunError(f"{error.strerror}: {where}: free some and leyden resume {run.name}")
    if isinstance(error, CheckpointError):
        return RunError(str(error))
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return ExitError(f"ended by sys.exit({error.code!r}){place_in_user_code(error)}", code)
    return error


@contextlib.contextmanager
def witnessed(leave: Callable[[ExitError], None]) -> Iterator[None]:
    """While in this block, call `leave` before code outside of leyden ends the process with `os._exit`.

    Nothing else could tell: no exception is raised, and the parent of a run, a shell, keeps no record.
    """
    end, process = os._exit, os.getpid()

    def witness(status: int) -> NoReturn:
        frame: Any = sys._getframe(1)
        if os.getpid() == process and not frame.f_globals.get("__name__", "").startswith("leyden."):
            place = f"{relative_to_cwd(Path(frame.f_code.co_filename))}:{frame.f_lineno} in {frame.f_code.co_name}"
            with contextlib.suppress(Exception):  # the process must end, whatever happens here
                leave(ExitError(f"ended by os._exit({status}) at {place}", status))
        end(status)

    os._exit = witness
    try:
        yield
    finally:
        os._exit = end
