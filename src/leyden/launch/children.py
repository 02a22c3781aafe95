"""Child processes: they are forked from a server that has torch loaded, get signals, and end with their parent."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Self

from leyden.distributed.signals import handled_signals

SAFE_PATH = "PYTHONSAFEPATH"
START_METHOD = "forkserver"  # a clean process that has torch and lightning loaded, from which others are forked


class Children:
    """The processes started in its `with` block. It passes a first signal on to all; a second Ctrl-C ends them.

    The server loads `modules` besides the module that trains.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self.signum: int | None = None  # the first signal
        self.killed: set[int] = set()  # pids of the processes that `kill` ended
        self.living: list[Any] = []
        self._context = multiprocessing.get_context(START_METHOD)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
            # joblib's own start method is unknown to the children, which would inherit it
            multiprocessing.set_start_method(START_METHOD, force=True)
        if START_METHOD == "forkserver":
            _start_server(self._modules)
        self._before = {s: signal.signal(s, self._handle) for s in handled_signals()}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def start(
        self,
        function: Callable[..., object],
        *arguments: Any,
        name: str,
        environ: dict[str, str] | None = None,
        orphaned: Callable[[], None] | None = None,
    ) -> Any:
        """Call a function in a new process; when this process dies, that one calls `orphaned`, by default to end."""
        work = partial(function, *arguments)
        child_arguments = (work, environ or dict(os.environ), list(self._before), orphaned or _end)
        process = self._context.Process(target=_child, args=child_arguments, name=name)
        process.start()
        self.living.append(process)
        if self.signum:
            _send(process, self.signum)
        return process

    def ended(self, timeout: float | None = None) -> list[Any]:
        """Wait until a process has ended, or for `timeout` seconds; return all processes that have ended."""
        wait([process.sentinel for process in self.living], timeout)
        ended_processes = [process for process in self.living if process.exitcode is not None]
        self.living = [process for process in self.living if process not in ended_processes]
        return ended_processes

    def pass_on(self, signum: int) -> None:
        """Send a signal to all processes, if it is the first."""
        if self.signum is not None:
            return
        self.signum = signum
        for process in self.living:
            _send(process, signum)
        if self.living:
            os.write(2, b"\nstopping at the next step with a checkpoint; Ctrl-C ends at once\n")

    def kill(self) -> None:
        """End all processes that are still alive; each first writes its stack to its log."""
        living = [process for process in self.living if process.exitcode is None]
        for process in living:
            self.killed.add(process.pid)
            _send(process, signal.SIGUSR2)
        if living:
            time.sleep(0.2)
        for process in living:
            process.kill()
            process.join()

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self.signum is None:
            self.pass_on(signum)
        elif signum == signal.SIGINT:
            self.kill()


def _send(process: BaseProcess, signum: int) -> None:
    """Send a signal to a process that has been started, unless it has ended."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signum)


def _start_server(modules: tuple[str, ...]) -> None:
    """Start the server that processes are forked from, if there is none yet.

    It ignores the signals that stop a run: SLURM sends them to every process of a job, and the server must outlive its
    children.
    """
    multiprocessing.set_forkserver_preload(["leyden.training.fit", *modules])
    handlers = {s: signal.signal(s, signal.SIG_IGN) for s in handled_signals()}
    safe_path_before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"  # so that a random.py in the working directory does not shadow the standard library's
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop(SAFE_PATH)
        if safe_path_before is not None:
            os.environ[SAFE_PATH] = safe_path_before
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def _child(
    work: Callable[[], object], environ: dict[str, str], signals: list[int], orphaned: Callable[[], None]
) -> None:
    os.setpgid(0, 0)  # Ctrl-C reaches only the parent, which passes it on once
    for signum in signals:  # the server ignores them
        signal.signal(signum, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environ)
    threading.Thread(target=_watch_parent, args=(orphaned,), daemon=True).start()
    work()


def _watch_parent(orphaned: Callable[[], None]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    orphaned()


def _end() -> None:
    os._exit(1)
