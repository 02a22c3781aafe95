"""Work on a run in one process: train it, write its log, and record how it ended."""

import faulthandler
import gc
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from leyden.config.check import expectations
from leyden.config.locations import in_project_folder, relative_to_cwd
from leyden.config.run_config import RunConfig
from leyden.console import complain, logging_to, note, say
from leyden.distributed.signals import Interrupted, Stop
from leyden.distributed.world import World
from leyden.errors import UserError, os_error_message
from leyden.launch import failures, slurm
from leyden.metric_names import find_metric
from leyden.run.directory import Run


@dataclass
class Verdict:
    """An expectation of the experiment and the value that the run reached; `held` tells whether it was met."""

    text: str
    held: bool


@dataclass
class Outcome:
    """The outcome of a run: the results for its status, and the verdicts on its experiment's expectations."""

    results: dict[str, Any]
    verdicts: list[Verdict] = field(default_factory=list)


def work(run: Run, config: RunConfig, world: World | None, store: Any) -> Outcome:
    """Train the run as one of its processes, and record how it ended."""
    is_supervised = world is not None and world.starter == "leyden"
    with _logging_run(run, world), Stop(supervised=is_supervised) as stop:
        cpu_time_before = time.process_time()
        with _reporting_end(run, world, stop):
            from leyden.distributed import ranks
            from leyden.training.fit import train

            if world is None or world.rank == 0:
                run.reserve()
            if not gc.get_freeze_count():
                gc.freeze()  # otherwise each collection takes 0.3 s and copies pages shared with forks
            if world and store is not None:
                ranks.join(world, store, config)
            with in_project_folder():
                results, pruned = train(run, config, stop)
            ranks.leave()
        verdicts: list[Verdict] = [] if pruned else judge(config, results["metrics"])
        if world is None or world.rank == 0:
            cpu_seconds = run.status.get("cpu_seconds", 0.0) + time.process_time() - cpu_time_before
            facts = {"exit_code": 0, "reason": None, **results, "cpu_seconds": round(cpu_seconds, 1)}
            expect = [{"text": verdict.text, "held": verdict.held} for verdict in verdicts]
            run.set_status("pruned" if pruned else "finished", **facts, expect=expect)
            for verdict in verdicts:
                say(f"{'as expected' if verdict.held else 'NOT AS EXPECTED'}: {verdict.text}")
        return Outcome(results, verdicts)


@contextmanager
def _logging_run(run: Run, world: World | None) -> Iterator[None]:
    """On rank 0, lock the run and write its log; on any other rank, redirect the console to the rank's file."""
    if world is None or world.rank == 0:
        with run.lock(), logging_to(run.path / "log.txt"):
            yield
        return
    path = failures.log_of(run, world.rank)
    if not (run.path / "config.yaml").exists():
        raise UserError(
            f"{run.path} does not exist for rank {world.rank}: every node needs the same file system for runs"
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
def _reporting_end(run: Run, world: World | None, stop: Stop) -> Iterator[None]:
    """Record how the work in the `with` block ended."""
    is_rank_0 = world is None or world.rank == 0
    steps_before = _saved_steps(run)

    def report(error: failures.ProcessError) -> None:
        note("".join(traceback.format_stack()))
        if world and world.size > 1:
            failures.write_reason(run, world.rank, error)
        if is_rank_0:
            note_status(run, "failed", exit_code=error.exit_code, reason=str(error))
            complain(str(error))

    try:
        with failures.reporting_os_exit(report):
            yield
    except Interrupted as interruption:
        stop.deferred = True  # the supervisor may signal this rank as well
        if is_rank_0:
            note_status(run, interruption.state, exit_code=interruption.exit_code, reason=str(interruption))
            say(f"{interruption}; go on with: leyden resume {run.name}")
            slurm.requeue(interruption.signum, has_progressed=bool(_saved_steps(run) - steps_before))
        raise
    except BaseException as error:
        stop.deferred = True
        if not isinstance(error, UserError):
            note(traceback.format_exc())
            error.__dict__["leyden_log"] = relative_to_cwd(failures.log_of(run, world.rank if world else 0))
        reason = failures.explain_exit(run, error)
        if world and world.size > 1:
            failure = failures.write_reason(run, world.rank, reason)
            if world.starter != "leyden":  # if leyden started the ranks, their supervisor explains the failure
                reason = failures.wait_for_cause(run, failure, world.size)
        if is_rank_0:
            message, code = failures.message_and_code(reason)
            note_status(run, "failed", exit_code=code, reason=message)
        if reason is error:
            raise
        raise reason from error


def _saved_steps(run: Run) -> set[str]:
    """Return the names of the run's checkpoints, except that of step 0."""
    return {path.stem for path in run.checkpoints() if int(path.stem.removeprefix("step-"))}


def note_status(run: Run, state: Any, **facts: Any) -> None:
    """Write the status; print a message if it cannot be written."""
    try:
        run.set_status(state, **facts)
    except OSError as error:  # a full disk must not hide why the run ended
        say(f"status.json could not be written: {os_error_message(error)}")


def judge(config: RunConfig, metrics: dict[str, float]) -> list[Verdict]:
    """Compare the metrics of a finished run with what its experiment expects."""
    verdicts = []
    for expectation in expectations(config):
        name = find_metric(expectation["metric"], metrics) or expectation["metric"]
        value = metrics.get(name)
        bounds = (("at least", expectation.get("at_least"), 1), ("at most", expectation.get("at_most"), -1))
        for bound, limit, sign in bounds:
            if limit is not None:
                is_met = value is not None and sign * value >= sign * limit
                finding = "was not logged" if value is None else f"is {value:.4g}"
                text = f"{name} {finding}, expected {bound} {limit}"
                verdicts.append(Verdict(text, is_met))
    return verdicts
