"""Start the run in a directory: in this process, on ranks of this machine, or on ranks that a cluster started."""

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leyden.config.run_config import RunConfig
from leyden.console import complain
from leyden.distributed.signals import Interrupted, Stop, forward_signal, handled_signals
from leyden.distributed.world import World, detect_world, local_ranks
from leyden.errors import UserError
from leyden.launch import failures
from leyden.launch.children import Children
from leyden.launch.work import Outcome, Verdict, note_status, work
from leyden.run.directory import Run

STOP_TIMEOUT = 60.0  # seconds that an interrupted rank waits for rank 0 to end
GRACE = 5.0  # seconds for the other ranks to end by themselves when one has failed
_roster: Any = None  # the `leyden.distributed.ranks.Roster` of this process, made at its first use


def start(run: Run, config: RunConfig | None = None, *, in_child: bool = False) -> Outcome:
    """Train the run in this directory to its end, from its last checkpoint if it has one.

    `config` is the frozen one by default; on another machine its machine settings may differ. With `in_child`, even a
    run of a single process gets a process of its own, so that it changes nothing in this one.

    Raises:
        UserError: if the request cannot be met; the directory of a new run is then removed.
        Interrupted: if a signal stopped the run; a checkpoint is saved.
        ProcessError: if one of several processes failed.
    """
    config = config or run.config
    try:
        world = detect_world()
        count = local_ranks(config, world)
        with run.lock():  # raises an error if another process works on the run
            failures.clear_reasons(run)
        if world is None and (count > 1 or in_child):
            return _supervise(run, config, count)
        store = roster(world).announce(run.path, config) if world else None
        return work(run, config, world, store)
    except UserError:
        if run.is_new and not run.checkpoints():
            run.discard()
        raise


def _supervise(run: Run, config: RunConfig, size: int) -> Outcome:
    """Start the ranks on this machine, pass signals on to them, and end all of them when one has failed."""
    with socket.create_server(("127.0.0.1", 0)) as listener, _Ranks() as ranks:
        for rank in range(size):
            world = World(rank, rank, size, size, "leyden", *listener.getsockname())
            ranks.start(_work_as_rank, run, config, world, listener if rank == 0 else None, name=f"rank {rank}")
        pids = [process.pid for process in ranks.processes]
        codes = ranks.watch()
    return _outcome(run, size, ranks, pids, codes)


def _outcome(run: Run, size: int, ranks: "_Ranks", pids: list[int], codes: list[int]) -> Outcome:
    """Return the results that the ranks wrote to the run directory, or raise the error that ended them; see `start`."""
    run = Run(run.path)  # without a cached status, since the ranks have written one
    if not any(codes) and run.status.get("state") in ("finished", "pruned"):
        forward_signal(ranks.signum)
        status = run.status
        results = {key: status[key] for key in ("metrics", "checkpoint", "last_metrics")}
        return Outcome(results, [Verdict(**verdict) for verdict in status["expect"]])
    signal_codes = [128 + s for s in handled_signals()]
    signum = ranks.signum or next((code - 128 for code in codes if code in signal_codes), None)
    reasons = failures.read_reasons(run)
    if signum and not (reasons and not reasons[0].lost_others):
        interruption = Interrupted(signum)
        if run.status.get("state") != interruption.state:
            note_status(run, interruption.state, exit_code=interruption.exit_code, reason=str(interruption))
            complain(f"{interruption}; go on with: leyden resume {run.name}")
        raise interruption
    hung_ranks = {rank for rank, pid in enumerate(pids) if pid in ranks.killed_pids}
    killed_ranks = ((rank, -code) for rank, code in enumerate(codes) if code < 0 and rank not in hung_ranks)
    signals = {rank: signal.Signals(signum).name for rank, signum in killed_ranks}
    explained_ranks = {failure.rank for failure in reasons} | hung_ranks
    for rank, code in enumerate(codes):
        if 0 < code < 128 and rank not in explained_ranks:
            failures.write_reason(run, rank, failures.exit_without_reason(code))
    error = failures.explain(run, size, signals, hung_ranks)
    note_status(run, "failed", exit_code=error.exit_code, reason=str(error))
    raise error


class _Ranks(Children):
    """The processes that train one run, one for each rank."""

    def watch(self) -> list[int]:
        """Wait for all processes to end, only briefly after one has failed; return their exit codes."""
        ranks, codes, deadline = list(self.processes), set[int](), None
        while self.processes:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            codes |= {process.exitcode for process in self.wait_for_any(timeout)}
            error_codes = codes - {0}
            stop_codes = error_codes & {128 + s for s in handled_signals()}
            if stop_codes:  # the signal may have reached only some of the ranks
                self.forward(min(stop_codes) - 128)
            if error_codes and deadline is None:
                deadline = time.monotonic() + (STOP_TIMEOUT if error_codes == stop_codes else GRACE)
            if deadline is not None and time.monotonic() >= deadline:
                self.kill()
        return [process.exitcode for process in ranks]


def _work_as_rank(run: Run, config: RunConfig, world: World, listener: socket.socket | None) -> None:
    """Work on the run as one rank, in a new process; a single rank needs no store."""
    from leyden.distributed import ranks

    if world.size > 1:
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        world.set_environ()
    log = failures.log_of(run, world.rank)
    log.parent.mkdir(exist_ok=True)
    faulthandler.register(signal.SIGUSR2, file=log.open("a"), all_threads=True)
    code = 1
    try:
        work(run, config, world, ranks.open_store(world, listener) if world.size > 1 else None)
        code = 0
    except Interrupted as interruption:
        code = interruption.exit_code
    except Exception as error:
        code = 2 if isinstance(error, UserError) else 1
        if not any(failure.rank == world.rank for failure in failures.read_reasons(run)):
            failures.write_reason(run, world.rank, error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # do not wait for a backend that waits for a lost rank


# Ranks that torchrun, srun or mpirun started


def roster(world: World) -> Any:
    """Return the connection to the ranks that torchrun, srun or mpirun made."""
    global _roster
    if _roster is None:
        from leyden.distributed import ranks

        world.set_environ()
        _roster = ranks.Roster(world)
    return _roster


def run_before_restart() -> Path | None:
    """Return the run that this command was working on when torchrun restarted its ranks."""
    world = detect_world()
    return roster(world).run_before_restart() if world and world.starter == "torchrun" else None


def follow_rank_0(world: World) -> int:
    """Work as a rank other than 0 on every run that rank 0 announces; return the exit code."""
    jobs = roster(world).jobs()
    with Stop():  # this Stop handles signals between two runs
        while True:
            try:
                path, config, store = next(jobs)
            except StopIteration as done:
                return done.value
            try:
                work(Run(path), config, world, store)
            except Interrupted:
                _await_dismissal(jobs)
                raise


def follow_next_run(world: World) -> Path:
    """Work as a rank other than 0 on the next run that rank 0 announces; return its path.

    Raises:
        UserError: if rank 0 cannot start it.
    """
    path, config, store = next(roster(world).jobs())
    work(Run(path), config, world, store)
    roster(world).await_end()
    return path


def _await_dismissal(jobs: Iterator[Any]) -> None:
    """Wait until rank 0 has closed its loggers, because srun and torchrun end all ranks when one ends."""
    from leyden.distributed import ranks

    ranks.leave()  # so that no other rank waits for this one
    waiter = threading.Thread(target=next, args=(jobs, None), daemon=True)
    waiter.start()
    waiter.join(STOP_TIMEOUT)
