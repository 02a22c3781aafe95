"""What can be said of a run from its files alone, without torch: for `ls` and `show`."""

import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from leyden.config.locations import seen
from leyden.console import Terminal, console, foreign, plain, put
from leyden.loggers.metrics_file import parse, read_metrics
from leyden.run.directory import Run

STATE_COLORS = {
    "created": "cyan",
    "queued": "cyan",
    "starting": "cyan",
    "cancelled": "yellow",
    "running": "blue",
    "finished": "green",
    "pruned": "magenta",
    "interrupted": "yellow",
    "preempted": "yellow",
    "failed": "red",
    "killed": "red",
    "broken": "red",
}
STAGE_COLORS = {"train": "bright_black", "val": "blue", "test": "red"}
TAIL = 1 << 16  # bytes of metrics.jsonl that hold the latest values


def wide_console() -> Terminal:
    """Return a console as wide as the terminal; where there is none, nothing is cut."""
    return Terminal(width=None if sys.stdout.isatty() else 10_000)


def latest_metrics(run: Run, status: dict | None = None) -> dict[str, float]:
    """Return the metrics of a finished run's best checkpoint, or the last values that any other one logged."""
    if final := (run.status if status is None else status).get("metrics"):
        return final
    latest: dict[str, float] = {}
    for line in _tail(run.path / "metrics.jsonl"):
        latest |= {key: value for key, value in (parse(line) or {}).items() if "/" in key}
    return latest


def metrics_of(run: Run) -> dict[str, float]:
    """Return all that a run has measured of its best checkpoint, or of its last if its model names no metric.

    It is what the status says and, as it may lack what only loggers were given, what was logged at that step.
    """
    status, best = run.status, run.best_checkpoint()
    if "checkpoint" in status:
        found = logged_at(run, status["checkpoint"]["step"]) | status["metrics"]
    else:  # not finished, or finished by a leyden whose status had the last values of training and validation
        found = latest_metrics(run) | (logged_at(run, _step(best)) if best else {})
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def logged_at(run: Run, step: int) -> dict[str, Any]:
    """Return what training and validation logged at a step."""
    found: dict[str, Any] = {}
    for row in read_metrics(run.path / "metrics.jsonl", step=step):
        if row.get("step") == step:
            found |= {k: v for k, v in row.items() if "/" in k and not k.startswith("test/")}
    return found


def checkpoint_title(checkpoint: dict[str, Any]) -> str:
    """Name the checkpoint that metrics are of, and why it is that: `checkpoint` as in status.json."""
    title = f"{checkpoint['is']} checkpoint, step {checkpoint['step']}"
    if "metric" not in checkpoint:
        return title
    kind = "highest" if checkpoint["mode"] == "max" else "lowest"
    return f"{title} ({checkpoint['metric']} {checkpoint['value']:.4g}, the {kind})"


def title_of(run: Run, checkpoint: Path) -> str:
    """Name a checkpoint of a run that may still be training."""
    tested = run.status.get("checkpoint") or {}
    if tested.get("step") == _step(checkpoint):
        return checkpoint_title(tested)
    name = "best " if checkpoint == run.best_checkpoint() else "last " if checkpoint in run.checkpoints()[:1] else ""
    return f"{name}checkpoint, step {_step(checkpoint)}"


def metrics_title(run: Run) -> str:
    """Say of which weights `latest_metrics` are."""
    status = run.status
    if "checkpoint" in status:
        return checkpoint_title(status["checkpoint"])
    return "test/: best checkpoint; train/, val/: last logged values" if status.get("metrics") else "last values logged"


def print_results(run: Run, results: dict[str, Any]) -> None:
    """Print a finished run's metrics, the checkpoint that they belong to, and where the run is."""
    console.print(metrics_table(results["metrics"], checkpoint_title(results["checkpoint"])))
    put(f"run: {seen(run.path)}")


def best_value(run: Run) -> float | None:
    """Return what a finished run has of the metric that its best checkpoint is chosen by; a sweeper learns from it."""
    monitor = run.config["checkpoint"].get("monitor") or run.manifest.get("monitor")
    return run.status.get("metrics", {}).get(monitor)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step-"))


def metrics_table(metrics: dict[str, float], title: str) -> Table:
    """One row for each metric, one column for each stage; the title says of which weights they are."""
    stages = [s for s in STAGE_COLORS if any(name.startswith(f"{s}/") for name in metrics)]
    stages += sorted({name.partition("/")[0] for name in metrics} - set(stages))
    style: dict[str, Any] = {"title_justify": "left", "box": None, "pad_edge": False, "header_style": "dim"}
    table = Table("", *map(plain, stages), title=foreign(title), **style)
    names = dict.fromkeys(name.partition("/")[2] for name in metrics)
    for name in sorted(names, key=lambda name: name != "loss"):  # the loss first, the others as they came
        values = [metrics.get(f"{stage}/{name}") for stage in stages]
        table.add_row(foreign(name), *("" if value is None else f"{value:.4g}" for value in values))
    return table


def monitored(metrics: dict[str, Any], manifest: dict) -> str | None:
    """Name the value that tells most: what chooses the best checkpoint, if possible on the test split."""
    chosen = (manifest.get("raw") or {}).get("checkpoint", {}).get("monitor") or manifest.get("monitor")
    for name in ([chosen.partition("/")[2]] if chosen else []) + ["accuracy", "loss"]:
        for stage in ("test", "val", "train"):
            if f"{stage}/{name}" in metrics:
                return f"{stage}/{name}"
    return next((name for name in metrics if name.startswith(("test/", "val/"))), None)


def seconds_worked(status: dict) -> float | None:
    """How long the run has worked since it was last started."""
    return status["heartbeat"] - status["started"] if "started" in status and "heartbeat" in status else None


def duration(seconds: float | None) -> str:
    """Write a time span in its two largest units: 3 d 04 h, 1 h 05 min, 12 min 30 s, 8 s."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _tail(path: Path) -> list[bytes]:
    """Return the last whole lines of a file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL))
        lines = file.read().splitlines(keepends=True)
    return [line for line in lines[1 if size > TAIL else 0 :] if line.endswith(b"\n")]
