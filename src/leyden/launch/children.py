"""Child processes, forked from a server that has torch loaded; they get their parent's signals, and end with it."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType, ModuleType
from typing import Any, Self

from leyden.distributed.signals import handled_signals

START_METHOD = "forkserver"  # forks from a clean process that has torch and lightning loaded


class Children:
    """Child processes that end with the `with` block. The first signal is passed on to all; a second Ctrl-C kills them.

    The server loads `modules` besides `leyden.training.fit`.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self.signum: int | None = None  # the first signal received
        self.killed_pids: set[int] = set()  # pids of the processes that `kill` ended
        self.processes: list[Any] = []
        self._context = multiprocessing.get_context(START_METHOD)
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        method = multiprocessing.get_start_method(allow_none=True)  # None stays changeable
        if method is not None and method not in multiprocessing.get_all_start_methods():
            # children inherit the start method, and do not know joblib's own
            multiprocessing.set_start_method(START_METHOD, force=True)
        if START_METHOD == "forkserver":
            _start_server(self._modules)
        self._old_handlers = {s: signal.signal(s, self._handle) for s in handled_signals()}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._old_handlers)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for signum, handler in self._old_handlers.items():
            signal.signal(signum, handler)

    def start(
        self,
        function: Callable[..., object],
        *arguments: Any,
        name: str,
        environ: dict[str, str] | None = None,
        on_orphaned: Callable[[], None] | None = None,
    ) -> Any:
        """Call a function in a new process.

        If this process dies, the new one calls `on_orphaned`, which by default ends it.
        """
        work = partial(function, *arguments)
        child_arguments = (work, environ or dict(os.environ), list(self._old_handlers), on_orphaned or _exit_at_once)
        process = self._context.Process(target=_child, args=child_arguments, name=name)
        with _without_main():
            process.start()
        self.processes.append(process)
        if self.signum:
            _send(process, self.signum)
        return process

    def wait_for_any(self, timeout: float | None = None) -> list[Any]:
        """Wait until a process has ended, but at most `timeout` seconds; return all processes that have ended."""
        wait([process.sentinel for process in self.processes], timeout)
        ended_processes = [process for process in self.processes if process.exitcode is not None]
        self.processes = [process for process in self.processes if process not in ended_processes]
        return ended_processes

    def forward(self, signum: int) -> None:
        """Send a signal to all processes, if it is the first."""
        if self.signum is not None:
            return
        self.signum = signum
        for process in self.processes:
            _send(process, signum)
        if self.processes:
            os.write(2, b"\nstopping at the next step with a checkpoint; Ctrl-C ends at once\n")

    def kill(self) -> None:
        """End all processes that are still alive; each first writes its stack to its log."""
        living_processes = [process for process in self.processes if process.exitcode is None]
        for process in living_processes:
            self.killed_pids.add(process.pid)
            _send(process, signal.SIGUSR2)
        if living_processes:
            time.sleep(0.2)
        for process in living_processes:
            process.kill()
            process.join()

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self.signum is None:
            self.forward(signum)
        elif signum == signal.SIGINT:
            self.kill()


def _send(process: BaseProcess, signum: int) -> None:
    """Send a signal to a process that has been started, unless it has ended."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signum)


def _start_server(modules: tuple[str, ...]) -> None:
    """Start the server that processes are forked from, if there is none yet.

    It blocks the signals that stop a run: SLURM sends them to every process of a job, and the server must outlive its
    children. In a child, a signal that comes before it has a handler waits until `Stop` unblocks it.
    """
    multiprocessing.set_forkserver_preload(["leyden.launch.preload", *modules])
    signals = handled_signals()
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    old_environ = dict(os.environ)
    os.environ["PYTHONSAFEPATH"] = "1"  # a random.py in the working directory must not shadow the standard library's
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the reason is in `leyden.cli.main`
    try:
        resource_tracker.ensure_running()  # a Python process too; this unblocks SIGINT and SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        forkserver.ensure_running()
    finally:
        for name in os.environ.keys() - old_environ.keys():
            del os.environ[name]
        os.environ.update(old_environ)
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep multiprocessing from importing the main module in a child: a script may call leyden without a guard."""
    main = sys.modules["__main__"]
    if START_METHOD == "forkserver":
        sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _child(
    work: Callable[[], object], environ: dict[str, str], signals: list[int], on_orphaned: Callable[[], None]
) -> None:
    os.setpgid(0, 0)  # Ctrl-C reaches only the parent, which passes it on once
    for signum in signals:
        signal.signal(signum, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environ)
    threading.Thread(target=_watch_parent, args=(on_orphaned,), daemon=True).start()
    work()


def _watch_parent(on_orphaned: Callable[[], None]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    on_orphaned()


def _exit_at_once() -> None:
    os._exit(1)
