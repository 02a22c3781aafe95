"""Start the run in a directory: on one process, on as many as it asks for, or on those that a cluster has started."""

import faulthandler
import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leyden.config.expectations import expectations
from leyden.config.locations import relative_to_cwd
from leyden.config.user_code import describe
from leyden.console import complain, logging_to, note, say
from leyden.distributed.world import World, given, local_ranks
from leyden.errors import RunError, UserError
from leyden.launch import exits, failures, slurm
from leyden.launch.children import Children
from leyden.run.directory import Run, State, step_of
from leyden.signals import Interrupted, Stop, hand_on, heard

PATIENCE = 60.0  # seconds that ranks wait for rank 0 to end, once a signal has stopped them all
GRACE = 5.0  # seconds for the other ranks to end by themselves when one has failed
_roster: Any = None  # of the ranks that torchrun or srun made; see leyden.ranks.Roster


@dataclass
class Verdict:
    """What an expectation said of the finished run."""

    text: str
    held: bool


@dataclass
class Outcome:
    """How a run ended: what its status says of the metrics, and what its experiment expected."""

    results: dict[str, Any]
    verdicts: list[Verdict] = field(default_factory=list)


def start(run: Run, config: dict | None = None) -> Outcome:
    """Train the run in this directory to its end, from its last checkpoint if it has one.

    `config` is the frozen one, on another machine perhaps.

    Raises:
        UserError: the request cannot be met; a run that was new is removed again.
        Interrupted: a signal stopped it; a checkpoint is saved.
        RankError: one of several processes failed.
    """
    config = config or run.config
    try:
        world = given()
        count = local_ranks(config, world)
        with run.lock():  # refused here, if another process works on it
            failures.forget(run)
        if world is None and count > 1:
            return _supervise(run, config, count)
        store = roster(world).call(run.path, config) if world else None
        return _work(run, config, world, store)
    except UserError:
        if run.is_new and not run.checkpoints():
            run.discard()
        raise


def begun() -> Path | None:
    """Return the run that this command had begun before torchrun started its ranks again."""
    world = given()
    return roster(world).begun() if world and world.starter == "torchrun" else None


def _work(run: Run, config: dict, world: World | None, store: Any) -> Outcome:
    """Do this process's share of the run."""
    alone = world is None or world.starter != "leyden"
    with _recording(run, world), Stop(supervised=not alone) as stop:
        began = time.process_time()
        with _ending(run, world, stop):
            from leyden.distributed import ranks
            from leyden.training.fit import train

            if world is None or world.rank == 0:
                run.reserve()
            if not gc.get_freeze_count():
                gc.freeze()  # or else what was imported is searched for garbage: 0.3 s, and memory is no longer shared
            if world:
                ranks.join(world, store, config)
            results, pruned = train(run, config, stop)
            ranks.leave()
        verdicts = [] if pruned else judge(config, results["metrics"])
        if world is None or world.rank == 0:
            spent = run.status.get("cpu_seconds", 0.0) + time.process_time() - began
            _write_final(run, "pruned" if pruned else "finished", results, verdicts, round(spent, 1))
            for verdict in verdicts:
                say(f"{'as expected' if verdict.held else 'NOT AS EXPECTED'}: {verdict.text}")
        return Outcome(results, verdicts)


@contextmanager
def _recording(run: Run, world: World | None) -> Iterator[None]:
    """Own the run, if this is rank 0, and write its log; the other ranks' consoles go to files of their own."""
    if world is None or world.rank == 0:
        with run.lock(), logging_to(run.path / "log.txt"):
            yield
        return
    path = failures.log_of(run, world.rank)
    if not (run.path / "config.yaml").exists():
        raise UserError(
            f"{run.path} is not there for rank {world.rank}: every node needs the same file system for runs"
        )
    path.parent.mkdir(exist_ok=True)
    sys.stdout.flush()
    with path.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    faulthandler.enable()
    with logging_to(path, show=False):
        yield


@contextmanager
def _ending(run: Run, world: World | None, stop: Stop) -> Iterator[None]:
    """Write down how the work inside ended."""
    chief = world is None or world.rank == 0
    saved = _saved(run)

    def leave(error: exits.ExitError) -> None:
        note("".join(traceback.format_stack()))
        if world and world.size > 1:
            failures.leave(run, world.rank, error)
        if chief:
            _note(run, "failed", exit_code=error.exit_code, reason=str(error))
            complain(str(error))

    try:
        with exits.witnessed(leave):
            yield
    except Interrupted as stopped:
        stop.deferred = True  # who ends the other ranks may signal this one, too
        if chief:
            _note(run, stopped.state, exit_code=stopped.exit_code, reason=str(stopped))
            say(f"{stopped}; go on with: leyden resume {run.name}")
            slurm.requeue(stopped.signum, progressed=bool(_saved(run) - saved))
        raise
    except BaseException as error:
        stop.deferred = True
        if not isinstance(error, UserError):
            note(traceback.format_exc())
            error.__dict__["leyden_log"] = relative_to_cwd(failures.log_of(run, world.rank if world else 0))
        reason = exits.reason_of(run, error)
        if world and world.size > 1:
            mine = failures.leave(run, world.rank, reason)
            if world.starter != "leyden":  # else who started the ranks finds out
                reason = failures.awaited(run, mine, world.size)
        if chief:
            plain = isinstance(reason, UserError | RunError)
            told = str(reason) if plain else describe(reason)
            _note(run, "failed", exit_code=reason.exit_code if plain else 1, reason=told)
        if reason is error:
            raise
        raise reason from error


def _saved(run: Run) -> set[str]:
    """The checkpoints of steps that were made."""
    return {path.stem for path in run.checkpoints() if step_of(path)}


def _note(run: Run, state: Any, **facts: Any) -> None:
    try:
        run.set_status(state, **facts)
    except OSError as error:  # a full disk must not hide why the run ended
        say(f"status.json could not be written: {error}")


def _write_final(run: Run, state: State, results: dict[str, Any], verdicts: list[Verdict], cpu_seconds: float) -> None:
    facts = {"exit_code": 0, "reason": None, **results, "cpu_seconds": cpu_seconds}
    run.set_status(state, **facts, expect=[{"text": v.text, "held": v.held} for v in verdicts])


def judge(config: dict, metrics: dict[str, float]) -> list[Verdict]:
    """Hold the metrics of a finished run against what its experiment expects."""
    verdicts = []
    for claim in expectations(config):
        value = metrics.get(claim["metric"])
        for bound, sign in (("at_least", 1), ("at_most", -1)):
            limit = claim.get(bound)
            if limit is not None:
                held = value is not None and sign * value >= sign * limit
                shown = "was not logged" if value is None else f"is {value:.4g}"
                verdicts.append(Verdict(f"{claim['metric']} {shown}, expected {bound.replace('_', ' ')} {limit}", held))
    return verdicts


# Ranks that leyden starts itself, on this machine


def _supervise(run: Run, config: dict, size: int) -> Outcome:
    """Start the ranks, pass signals on to them, and see to it that they end together."""
    with socket.create_server(("127.0.0.1", 0)) as listener, _Ranks() as ranks:
        for rank in range(size):
            world = World(rank, rank, size, size, "leyden", *listener.getsockname())
            ranks.start(_rank, run, config, world, listener if rank == 0 else None, name=f"rank {rank}")
        everyone = [process.pid for process in ranks.living]
        codes = ranks.watch()
    ended = Run(run.path)  # as the ranks left it
    if not any(codes) and ended.status.get("state") in ("finished", "pruned"):
        hand_on(ranks.signum)
        status = ended.status
        results = {key: status[key] for key in ("metrics", "checkpoint", "last_metrics")}
        return Outcome(results, [Verdict(**verdict) for verdict in status["expect"]])
    stops = [128 + s for s in heard()]
    signum = ranks.signum or next((code - 128 for code in codes if code in stops), None)
    left = failures.found(ended)
    if signum and not (left and not left[0].lost_others):
        stopped = Interrupted(signum)
        if ended.status.get("state") != stopped.state:
            _note(ended, stopped.state, exit_code=stopped.exit_code, reason=str(stopped))
            complain(f"{stopped}; go on with: leyden resume {run.name}")
        raise stopped
    ended_here = {rank for rank, pid in enumerate(everyone) if pid in ranks.killed}
    killed = {
        rank: signal.Signals(-code).name for rank, code in enumerate(codes) if code < 0 and rank not in ended_here
    }
    told = {failure.rank for failure in failures.found(ended)} | ended_here
    for rank, code in enumerate(codes):
        if 0 < code < 128 and rank not in told:
            failures.leave(ended, rank, exits.silent(code))
    error = failures.explain(ended, size, killed, ended_here)
    _note(ended, "failed", exit_code=error.exit_code, reason=str(error))
    raise error


class _Ranks(Children):
    """The processes of one run."""

    def watch(self) -> list[int]:
        """Wait for all to end, but not for long once one has failed; return their exit codes."""
        everyone, codes, until = list(self.living), set[int](), None
        while self.living:
            codes |= {p.exitcode for p in self.ended(None if until is None else max(0.0, until - time.monotonic()))}
            failed = codes - {0}
            stops = failed & {128 + s for s in heard()}
            if stops:  # perhaps the others do not know
                self.pass_on(min(stops) - 128)
            if failed and until is None:
                until = time.monotonic() + (PATIENCE if failed == stops else GRACE)
            if until is not None and time.monotonic() >= until:
                self.kill()
        return [process.exitcode for process in everyone]


def _rank(run: Run, config: dict, world: World, listener: socket.socket | None) -> None:
    """Be one rank: what a new process calls."""
    from leyden.distributed import ranks

    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    world.enter()
    log = failures.log_of(run, world.rank)
    log.parent.mkdir(exist_ok=True)
    faulthandler.register(signal.SIGUSR2, file=log.open("a"), all_threads=True)
    code = 1
    try:
        _work(run, config, world, ranks.open_store(world, listener))
        code = 0
    except Interrupted as stopped:
        code = stopped.exit_code
    except Exception as error:
        code = 2 if isinstance(error, UserError) else 1
        if not any(failure.rank == world.rank for failure in failures.found(run)):
            failures.leave(run, world.rank, error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a backend that waits for a lost rank must not keep this one


# Ranks that torchrun, srun or mpirun has started


def roster(world: World) -> Any:
    """Return the way to the ranks that somebody else made."""
    global _roster
    if _roster is None:
        from leyden.distributed import ranks

        world.enter()
        _roster = ranks.Roster(world)
    return _roster


def follow(world: World) -> int:
    """Be a rank other than 0: work on every run that rank 0 calls for; return the exit code."""
    jobs = roster(world).jobs()
    with Stop():  # between two runs
        while True:
            try:
                path, config, store = next(jobs)
            except StopIteration as done:
                return done.value
            try:
                _work(Run(path), config, world, store)
            except Interrupted:
                _let_rank_0_end(jobs)
                raise


def _let_rank_0_end(jobs: Iterator[Any]) -> None:
    """Stay until rank 0 has closed its loggers: srun and torchrun end all ranks when one ends."""
    from leyden.distributed import ranks

    ranks.leave()  # so that nobody waits for this rank
    watch = threading.Thread(target=next, args=(jobs, None), daemon=True)
    watch.start()
    watch.join(PATIENCE)


def dismiss(world: World, exit_code: int) -> None:
    """Let the other ranks go."""
    roster(world).dismiss(exit_code)
