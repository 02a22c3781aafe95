"""Reasons of failed runs.

Each rank writes the reason of its failure to a file. From these files the other ranks and the supervisor find out which
rank failed first. The module also explains runs that end without an error of leyden: by a full disk, `sys.exit` or
`os._exit`.
"""

import contextlib
import errno
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from leyden.config.locations import relative_to_cwd
from leyden.config.user_code import describe, place_in_user_code
from leyden.errors import CheckpointError, RunError, UserError
from leyden.files import write_atomically
from leyden.run.directory import Run

DISK_FULL_CODES = (errno.ENOSPC, errno.EDQUOT)
TIMEOUT_MESSAGES = ("timed out waiting", "collective operation timeout")
# Parts of the error messages of ranks that have lost another rank.
LOST_RANK_MESSAGES = (
    *("closed by peer", "reset by peer", "broken pipe", "remote process exited", "failed to recv", "recvvalue failed"),
    *TIMEOUT_MESSAGES,
)
REASON_TIMEOUT = 3.0  # seconds that a rank which lost the others waits for one of them to write a reason


class ProcessError(RunError):
    """A process of the run has failed. The exit code is that of the process, 128 + the signal that ended it, or 1."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code or 1


class Failure(NamedTuple):
    """The reason why a rank failed, as it is written to the rank's file."""

    rank: int
    host: str
    time: float
    message: str
    exit_code: int
    lost_others: bool  # whether this rank failed only because another rank had ended


def message_and_code(error: BaseException) -> tuple[str, int]:
    """Return the one-line message of an exception, and its exit code."""
    if isinstance(error, UserError | RunError):
        return str(error), error.exit_code
    return describe(error), 1


def exit_without_reason(exit_code: int) -> ProcessError:
    """Return the error of a process that ended with an exit code but wrote no reason."""
    return ProcessError(f"exited with code {exit_code} and left no error message", exit_code)


def explain_exit(run: Run, error: BaseException) -> BaseException:
    """Return an error that says in one line how a full disk or `sys.exit` ended a run, or else `error`."""
    if isinstance(error, OSError) and error.errno in DISK_FULL_CODES:
        path = Path(error.filename) if isinstance(error.filename, str) else run.path
        return RunError(f"{error.strerror}: {relative_to_cwd(path)}: free some space, then leyden resume {run.name}")
    if isinstance(error, CheckpointError):
        return RunError(str(error))
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return ProcessError(f"ended by sys.exit({error.code!r}){place_in_user_code(error)}", code)
    return error


@contextlib.contextmanager
def reporting_os_exit(report: Callable[[ProcessError], None]) -> Iterator[None]:
    """While in this block, call `report` before code outside of leyden ends the process with `os._exit`.

    Without it, the run would end without a reason, because `os._exit` raises no exception.
    """
    original_exit, pid = os._exit, os.getpid()

    def report_and_exit(status: int) -> NoReturn:
        frame: Any = sys._getframe(1)
        if os.getpid() == pid and not frame.f_globals.get("__name__", "").startswith("leyden."):
            location = f"{relative_to_cwd(Path(frame.f_code.co_filename))}:{frame.f_lineno} in {frame.f_code.co_name}"
            with contextlib.suppress(Exception):  # the process must end, whatever happens here
                report(ProcessError(f"ended by os._exit({status}) at {location}", status))
        original_exit(status)

    os._exit = report_and_exit
    try:
        yield
    finally:
        os._exit = original_exit


def clear_reasons(run: Run) -> None:
    """Remove the reasons that ranks wrote at an earlier start."""
    for path in (run.path / "ranks").glob("*.error.json"):
        path.unlink(missing_ok=True)


def write_reason(run: Run, rank: int, error: BaseException) -> Failure:
    """Write the reason why this rank fails to its file, and return it."""
    lost_others = isinstance(error, RuntimeError | OSError) and any(s in str(error).lower() for s in LOST_RANK_MESSAGES)
    failure = Failure(rank, platform.node(), time.time(), *message_and_code(error), lost_others)
    path = run.path / "ranks" / f"{rank}.error.json"
    with contextlib.suppress(OSError):  # a full disk must not hide the reason
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(failure._asdict()))
    return failure


def read_reasons(run: Run) -> list[Failure]:
    """List the reasons that ranks wrote, the cause first; ranks that only lost the others come last."""
    failures = []
    for path in (run.path / "ranks").glob("*.error.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # a damaged file; the other ranks' reasons count
            failures.append(Failure(**json.loads(path.read_bytes())))
    return sorted(failures, key=lambda failure: (failure.lost_others, failure.time))


def wait_for_cause(run: Run, failure: Failure, size: int) -> UserError | ProcessError:
    """Return the error that ended all ranks.

    A rank that lost the others first gives them a moment to write their reasons.
    """
    deadline = time.monotonic() + REASON_TIMEOUT
    while failure.lost_others and all(f.lost_others for f in read_reasons(run)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return explain(run, size, fallback=failure)


def explain(
    run: Run,
    size: int,
    signals: dict[int, str] | None = None,
    hung_ranks: Iterable[int] = (),
    fallback: Failure | None = None,
) -> UserError | ProcessError:
    """Return an error that says which rank failed first and why.

    `signals` maps each rank that a signal ended to the signal's name; `hung_ranks` are those that had to be killed;
    `fallback` is used if no reason could be written, for example on a full disk.
    """
    failures = read_reasons(run) or ([fallback] if fallback else [])
    first = failures[0] if failures else None
    if first and not first.lost_others:
        if first.exit_code == 2:
            return UserError(first.message)
        if size == 1:
            return ProcessError(f"{first.message} (the traceback is in {_log(run, 0)})", first.exit_code)
        host = "" if first.host == platform.node() else f" on {first.host}"
        text = f"rank {first.rank} of {size}{host} failed: {first.message} ({_log(run, first.rank)})"
        return ProcessError(text, first.exit_code)
    # NCCL aborts a rank whose collective timed out, so with hung ranks SIGABRT is not the cause
    causes = {rank: name for rank, name in (signals or {}).items() if not (hung_ranks and name == "SIGABRT")}
    if causes:
        rank, name = next(iter(causes.items()))
        hint = ": perhaps out of memory" if name == "SIGKILL" else ""
        process = "the process" if size == 1 else f"rank {rank} of {size}"
        text = f"{process} was ended by {name}{hint} ({_log(run, rank)})"
        return ProcessError(text, 128 + signal.Signals[name])
    silent_ranks = sorted(hung_ranks) or sorted(set(range(size)) - {failure.rank for failure in failures})
    subject = f"rank {silent_ranks[0]} of {size}" if silent_ranks else f"one of the {size} ranks"
    log = f" ({_log(run, silent_ranks[0])})" if silent_ranks else ""
    last_line = first.message.strip().splitlines()[-1] if first else ""
    if (signals and hung_ranks) or any(message in last_line.lower() for message in TIMEOUT_MESSAGES):
        timeout = run.config["timeout"]
        return ProcessError(f"{subject} gave no answer for {timeout} s, the timeout: it hangs, or its link is cut{log}")
    observation = f"; rank {first.rank} saw {last_line}" if first else ""
    return ProcessError(f"{subject} was killed, or cannot be reached{log}{observation}")


def _log(run: Run, rank: int) -> Path:
    return relative_to_cwd(log_of(run, rank))


def log_of(run: Run, rank: int) -> Path:
    """Return the file of a rank's console and log; rank 0 writes the run's log."""
    return run.path / "log.txt" if rank == 0 else run.path / "ranks" / f"{rank}.txt"
