"""Which rank failed first, and why: the rank itself leaves a file, since the others only see that it is gone."""

import contextlib
import json
import platform
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from leyden.config import locations
from leyden.config.user_code import describe
from leyden.errors import RunError, UserError
from leyden.files import write_atomically
from leyden.run.directory import Run

# How the errors of ranks read that lost another rank.
SYMPTOMS = (
    *("closed by peer", "reset by peer", "broken pipe", "remote process exited", "failed to recv", "recvvalue failed"),
    *("timed out waiting", "collective operation timeout"),
)
PATIENCE = 3.0  # seconds that a rank which lost the others waits for one of them to leave a reason


class RankError(RunError):
    """A rank failed; the message says which and why. If a signal ended it, the exit code is 128 + signal."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Failure(NamedTuple):
    """The reason that a rank left behind."""

    rank: int
    host: str
    time: float
    message: str
    exit_code: int
    lost_others: bool  # it fails only because another rank is gone


def forget(run: Run) -> None:
    """Remove the reasons that an earlier start left."""
    for path in (run.path / "ranks").glob("*.error.json"):
        path.unlink(missing_ok=True)


def leave(run: Run, rank: int, error: BaseException) -> Failure:
    """Write down why this rank fails."""
    is_plain = isinstance(error, UserError | RunError)
    message = str(error) if is_plain else describe(error)
    lost_others = isinstance(error, RuntimeError | OSError) and any(s in str(error).lower() for s in SYMPTOMS)
    failure = Failure(rank, platform.node(), time.time(), message, error.exit_code if is_plain else 1, lost_others)
    path = run.path / "ranks" / f"{rank}.error.json"
    with contextlib.suppress(OSError):  # a full disk must not hide the reason
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(failure._asdict()))
    return failure


def read(run: Run) -> list[Failure]:
    """List the reasons that ranks left, the cause first; ranks that only lost the others come last."""
    failures = []
    for path in (run.path / "ranks").glob("*.error.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # a damaged file; the other ranks' reasons count
            failures.append(Failure(**json.loads(path.read_bytes())))
    return sorted(failures, key=lambda failure: (failure.lost_others, failure.time))


def awaited(run: Run, failure: Failure, size: int) -> UserError | RankError:
    """Return the error that ended all ranks; a rank that lost the others gives them a moment to leave a reason."""
    until = time.monotonic() + PATIENCE
    while failure.lost_others and all(f.lost_others for f in read(run)) and time.monotonic() < until:
        time.sleep(0.1)
    return explain(run, size, last_word=failure)


def explain(
    run: Run,
    size: int,
    killed: dict[int, str] | None = None,
    hung: Iterable[int] = (),
    last_word: Failure | None = None,
) -> UserError | RankError:
    """Return an error that says which rank failed first and why.

    `killed` are those that a signal ended, with its name; `hung` had to be ended; `last_word` is of a rank that may
    have found no room on the disk for it.
    """
    failures = read(run) or ([last_word] if last_word else [])
    first = failures[0] if failures else None
    if first and not first.lost_others:
        if first.exit_code == 2:
            return UserError(first.message)
        where = "" if first.host == platform.node() else f" on {first.host}"
        text = f"rank {first.rank} of {size}{where} failed: {first.message} ({_log(run, first.rank)})"
        return RankError(text, first.exit_code)
    causes = {rank: name for rank, name in (killed or {}).items() if not (hung and name == "SIGABRT")}
    if causes:  # NCCL ends a rank that waited in vain by SIGABRT
        rank, name = next(iter(causes.items()))
        hint = ": out of memory, perhaps" if name == "SIGKILL" else ""
        code = 128 + signal.Signals[name]
        return RankError(f"rank {rank} of {size} was ended by {name}{hint} ({_log(run, rank)})", code)
    silent = sorted(hung) or sorted(set(range(size)) - {failure.rank for failure in failures})
    who = f"rank {silent[0]} of {size}" if silent else f"one of the {size} ranks"
    log = f" ({_log(run, silent[0])})" if silent else ""
    last_line = first.message.strip().splitlines()[-1] if first else ""
    if (killed and hung) or any(symptom in last_line.lower() for symptom in SYMPTOMS[-2:]):
        text = f"{who} gave no answer for {run.config['timeout']} s, the timeout: it hangs, or its link is cut{log}"
        return RankError(text)
    saw = f"; rank {first.rank} saw {last_line}" if first else ""
    return RankError(f"{who} was killed, or cannot be reached{log}{saw}")


def _log(run: Run, rank: int) -> Path:
    return locations.relative_to_cwd(log_of(run, rank))


def log_of(run: Run, rank: int) -> Path:
    """Return the file of a rank's console and log; rank 0 writes the run's log."""
    return run.path / "log.txt" if rank == 0 else run.path / "ranks" / f"{rank}.txt"
