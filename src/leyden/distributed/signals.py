"""The signals that stop a run: the first asks for a checkpoint and a stop; a second Ctrl-C ends the process at once."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

# SLURM warns of the time limit by SIGUSR1 if the job has requested it
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Interrupted(BaseException):
    """The run was asked to stop. The exit code is 128 + the signal, as in a shell: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum

    @property
    def state(self) -> Any:
        """The run's state after the signal: `interrupted` by a person, `preempted` by a scheduler."""
        return "interrupted" if self.signum == signal.SIGINT else "preempted"


class Stop:
    """Handles the signals in its `with` block.

    While `deferred` is true (in training, between two step boundaries) a first signal is only stored in `signum`;
    the training loop calls `check` at the next boundary. Otherwise the signal raises `Interrupted` at once, unless
    training is `done` and only the last files and loggers are being closed: then the run ends normally. After the first
    signal only Ctrl-C counts, since a scheduler follows up with SIGKILL; a rank that is `supervised` leaves
    Ctrl-C to its supervisor.
    """

    def __init__(self, supervised: bool = False) -> None:
        self.signum: int | None = None
        self.deferred = False
        self.done = False
        self._supervised = supervised
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        self._old_handlers = {s: signal.signal(s, self._handle) for s in handled_signals()}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._old_handlers)  # delivers signals that came during imports
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._old_handlers.items():
            signal.signal(signum, handler)
        if self.done:
            forward_signal(self.signum)

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
            progress = "training is complete, closing" if self.done else "stopping at the next step with a checkpoint"
            with contextlib.suppress(OSError):  # stderr may be a pipe that nobody reads any more
                os.write(2, f"\n{progress}; Ctrl-C ends at once\n".encode())


def forward_signal(signum: int | None) -> None:
    """Pass a signal that arrived after the end of a run to the `Stop` of the enclosing sweep."""
    outer_stop = getattr(signal.getsignal(signum), "__self__", None) if signum else None
    if isinstance(outer_stop, Stop) and signum:
        outer_stop._handle(signum, None)


def handled_signals() -> list[signal.Signals]:
    """List the signals that are not ignored (nohup, for example, ignores SIGHUP); only the main thread handles any."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
