"""Start the run in a directory: lock it, own the signals, do the work, write how it ended."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from leyden.check import expectations
from leyden.console import logging_to, note, say
from leyden.errors import UserError
from leyden.run import Run
from leyden.signals import Interrupted, Stop


@dataclass
class Verdict:
    """What an expectation said of the finished run."""

    text: str
    held: bool


@dataclass
class Outcome:
    """How a run ended."""

    metrics: dict[str, float]
    verdicts: list[Verdict] = field(default_factory=list)


def start(run: Run) -> Outcome:
    """Train the run in this directory to its end, from its last checkpoint if it has one.

    Raises:
        UserError: the request cannot be met; a run that was new is removed again.
        Interrupted: a signal stopped it; a checkpoint is saved.
    """
    with run.lock(), logging_to(run.path / "log.txt"), Stop() as stop:
        began = time.process_time()
        try:
            with _ending(run):
                from leyden.train import train

                metrics = train(run, stop)
        except UserError:
            if run.is_new and not run.checkpoints():
                run.discard()
            raise
        spent = run.status.get("cpu_seconds", 0.0) + time.process_time() - began
        run.set_status("running", cpu_seconds=round(spent, 1))
        verdicts = judge(run.config, metrics)
        _write_final(run, metrics, verdicts)
        for verdict in verdicts:
            say(f"{'as expected' if verdict.held else 'NOT AS EXPECTED'}: {verdict.text}")
        return Outcome(metrics, verdicts)


@contextmanager
def _ending(run: Run) -> Iterator[None]:
    """Write into status.json how the work inside ended."""
    try:
        yield
    except Interrupted as stopped:
        _note(run, stopped.state, exit_code=stopped.exit_code, reason=str(stopped))
        say(f"{stopped}; go on with: leyden resume {run.name}")
        raise
    except UserError as error:
        _note(run, "failed", exit_code=2, reason=str(error))
        raise
    except BaseException as error:
        note(traceback.format_exc())
        _note(run, "failed", exit_code=1, reason=f"{type(error).__name__}: {error}")
        raise


def _note(run: Run, state: Any, **facts: Any) -> None:
    try:
        run.set_status(state, **facts)
    except OSError as error:  # a full disk must not hide why the run ended
        say(f"status.json could not be written: {error}")


def _write_final(run: Run, metrics: dict[str, float], verdicts: list[Verdict]) -> None:
    facts = {"exit_code": 0, "reason": None, "metrics": metrics}
    run.set_status("finished", **facts, expect=[{"text": v.text, "held": v.held} for v in verdicts])


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
