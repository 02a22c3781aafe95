"""The signals that stop a run: the first asks for a checkpoint and a stop; a second Ctrl-C ends the process at once."""

import os
import signal
from types import FrameType
from typing import Any

# SIGUSR1 is how SLURM warns of the time limit, when it is asked to
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Interrupted(BaseException):
    """The run was asked to stop. The exit code is 128 + the signal, as a shell's: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum

    @property
    def state(self) -> Any:
        """The run's state after it: `interrupted` by a person, `preempted` by a scheduler."""
        return "interrupted" if self.signum == signal.SIGINT else "preempted"


class Stop:
    """Owns the signals while in its `with` block.

    While `deferred` is true (training, between two step boundaries) a first signal is only noted in `signum`;
    whoever trains calls `check` at the next boundary. Otherwise it raises `Interrupted` at once, unless all is `done`
    and only the last files and loggers are being closed: then the run ends as it would have. After a first signal
    only Ctrl-C counts, for a scheduler that sends others has SIGKILL, too; a rank that is `supervised` leaves that to
    who started it.
    """

    def __init__(self, supervised: bool = False) -> None:
        self.signum: int | None = None
        self.deferred = False
        self.done = False
        self._supervised = supervised
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._handle) for s in heard()}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)  # what came while torch was imported comes now
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self.done:
            hand_on(self.signum)

    def check(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self.signum is not None:
            if signum == signal.SIGINT and not self._supervised:
                os._exit(128 + signum)
            return
        self.signum = signum
        if not self.deferred and not self.done:
            raise Interrupted(signum)
        if not self._supervised:
            what = "all is trained, closing" if self.done else "stopping at the next step with a checkpoint"
            os.write(2, f"\n{what}; Ctrl-C ends at once\n".encode())


def hand_on(signum: int | None) -> None:
    """Tell the `Stop` around a run, a sweep's, of a signal that came too late for the run."""
    around = getattr(signal.getsignal(signum), "__self__", None) if signum else None
    if isinstance(around, Stop) and signum:
        around._handle(signum, None)


def heard() -> list[signal.Signals]:
    """List the signals that are not ignored, as nohup ignores SIGHUP."""
    return [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
