"""Start the run in a directory: in this process, on ranks of this machine, or on those that a cluster has started."""

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


def start(run: Run, config: RunConfig | None = None) -> Outcome:
    """Train the run in this directory to its end, from its last checkpoint if it has one.

    `config` is the frozen one by default; on another machine its machine settings may differ.

    Raises:
        UserError: the request cannot be met; a run that was new is removed again.
        Interrupted: a signal stopped it; a checkpoint is saved.
        ProcessError: one of several processes failed.
    """
    config = config or run.config
    try:
        world = detect_world()
        count = local_ranks(config, world)
        with run.lock():  # raises if another process works on the run
            failures.clear_reasons(run)
        if world is None and count > 1:
            return _supervise(run, config, count)
        store = roster(world).call(run.path, config) if world else None
        return work(run, config, world, store)
    except UserError:
        if run.is_new and not run.checkpoints():
            run.discard()
        raise


def _supervise(run: Run, config: RunConfig, size: int) -> Outcome:
    """Start the ranks on this machine, pass signals on to them, and make sure that they end together."""
    with socket.create_server(("127.0.0.1", 0)) as listener, _Ranks() as ranks:
        for rank in range(size):
            world = World(rank, rank, size, size, "leyden", *listener.getsockname())
            ranks.start(_work_as_rank, run, config, world, listener if rank == 0 else None, name=f"rank {rank}")
        pids = [process.pid for process in ranks.living]
        codes = ranks.watch()
    return _outcome(run, size, ranks, pids, codes)


def _outcome(run: Run, size: int, ranks: "_Ranks", pids: list[int], codes: list[int]) -> Outcome:
    """Return the results that the ranks wrote to the run directory, or raise the error that ended them; see `start`."""
    ended = Run(run.path)  # as the ranks left it
    if not any(codes) and ended.status.get("state") in ("finished", "pruned"):
        forward_signal(ranks.signum)
        status = ended.status
        results = {key: status[key] for key in ("metrics", "checkpoint", "last_metrics")}
        return Outcome(results, [Verdict(**verdict) for verdict in status["expect"]])
    stops = [128 + s for s in handled_signals()]
    signum = ranks.signum or next((code - 128 for code in codes if code in stops), None)
    reasons = failures.read_reasons(ended)
    if signum and not (reasons and not reasons[0].lost_others):
        interruption = Interrupted(signum)
        if ended.status.get("state") != interruption.state:
            note_status(ended, interruption.state, exit_code=interruption.exit_code, reason=str(interruption))
            complain(f"{interruption}; go on with: leyden resume {run.name}")
        raise interruption
    hung = {rank for rank, pid in enumerate(pids) if pid in ranks.killed}
    killed = {rank: signal.Signals(-code).name for rank, code in enumerate(codes) if code < 0 and rank not in hung}
    explained = {failure.rank for failure in reasons} | hung
    for rank, code in enumerate(codes):
        if 0 < code < 128 and rank not in explained:
            failures.write_reason(ended, rank, failures.without_message(code))
    error = failures.explain(ended, size, killed, hung)
    note_status(ended, "failed", exit_code=error.exit_code, reason=str(error))
    raise error


class _Ranks(Children):
    """The processes of one run."""

    def watch(self) -> list[int]:
        """Wait until all processes have ended, not for long once one has failed; return their exit codes."""
        ranks, codes, until = list(self.living), set[int](), None
        while self.living:
            codes |= {p.exitcode for p in self.ended(None if until is None else max(0.0, until - time.monotonic()))}
            failed = codes - {0}
            stops = failed & {128 + s for s in handled_signals()}
            if stops:  # the signal may have reached only some of the ranks
                self.pass_on(min(stops) - 128)
            if failed and until is None:
                until = time.monotonic() + (STOP_TIMEOUT if failed == stops else GRACE)
            if until is not None and time.monotonic() >= until:
                self.kill()
        return [process.exitcode for process in ranks]


def _work_as_rank(run: Run, config: RunConfig, world: World, listener: socket.socket | None) -> None:
    """Work on the run as one rank; a new process calls this."""
    from leyden.distributed import ranks

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    world.enter()
    log = failures.log_of(run, world.rank)
    log.parent.mkdir(exist_ok=True)
    faulthandler.register(signal.SIGUSR2, file=log.open("a"), all_threads=True)
    code = 1
    try:
        work(run, config, world, ranks.open_store(world, listener))
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
        os._exit(code)  # a backend that waits for a lost rank must not keep this one


# Ranks that torchrun, srun or mpirun has started


def roster(world: World) -> Any:
    """Return the connection to the ranks that torchrun, srun or mpirun made."""
    global _roster
    if _roster is None:
        from leyden.distributed import ranks

        world.enter()
        _roster = ranks.Roster(world)
    return _roster


def run_before_restart() -> Path | None:
    """Return the run that this command was working on when torchrun restarted its ranks."""
    world = detect_world()
    return roster(world).run_before_restart() if world and world.starter == "torchrun" else None


def follow_rank_0(world: World) -> int:
    """Work as a rank other than 0 on every run that rank 0 announces; return the exit code."""
    jobs = roster(world).jobs()
    with Stop():  # owns the signals between two runs
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


def _await_dismissal(jobs: Iterator[Any]) -> None:
    """Wait until rank 0 has closed its loggers, because srun and torchrun end all ranks when one ends."""
    from leyden.distributed import ranks

    ranks.leave()  # so that no other rank waits for this one
    watch = threading.Thread(target=next, args=(jobs, None), daemon=True)
    watch.start()
    watch.join(STOP_TIMEOUT)
