"""Summaries of a run from its files alone, without torch: its metrics, their titles and tables."""

import math
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from leyden.config.locations import relative_to_cwd
from leyden.console import Terminal, console, escaped, escaped_text, put
from leyden.loggers.metrics_file import parse, read_metrics
from leyden.run.directory import Run, step_of

STATE_COLORS = {
    **dict.fromkeys(("created", "queued", "starting"), "cyan"),
    **dict.fromkeys(("cancelled", "interrupted", "preempted"), "yellow"),
    **dict.fromkeys(("failed", "killed", "broken"), "red"),
    "running": "blue",
    "finished": "green",
    "pruned": "magenta",
}
STAGE_COLORS = {"train": "bright_black", "val": "blue", "test": "red"}
# errors that a damaged run directory, or one of another format, may cause
DAMAGE = (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError)
TAIL = 1 << 16  # bytes at the end of metrics.jsonl that are searched for the latest values


def wide_console() -> Terminal:
    """Return a console as wide as the terminal, or wide enough for every line if the output is not a terminal."""
    return Terminal(width=None if sys.stdout.isatty() else 10_000)


def latest_metrics(run: Run, status: dict[str, Any] | None = None) -> dict[str, float]:
    """Return the metrics of a finished run's best checkpoint, or the last logged values of any other run."""
    if final := (run.status if status is None else status).get("metrics"):
        return final
    latest: dict[str, float] = {}
    for line in _tail(run.path / "metrics.jsonl"):
        latest |= {key: value for key, value in (parse(line) or {}).items() if "/" in key}
    return latest


def metrics_of(run: Run) -> dict[str, float]:
    """Return all metrics of a run's best checkpoint, or of its last one if no metric chooses the best.

    The status does not hold all of them, so those logged at the checkpoint's step are added.
    """
    status, best = run.status, run.best_checkpoint()
    if "checkpoint" in status:
        metrics = logged_at(run, status["checkpoint"]["step"]) | status["metrics"]
    else:  # not finished, or an earlier leyden wrote the last values of training and validation into the status
        metrics = latest_metrics(run) | (logged_at(run, step_of(best)) if best else {})
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}


def logged_at(run: Run, step: int) -> dict[str, Any]:
    """Return the metrics that training and validation logged at a step."""
    metrics: dict[str, Any] = {}
    for row in read_metrics(run.path / "metrics.jsonl", step=step):
        if row.get("step") == step:
            metrics |= {k: v for k, v in row.items() if "/" in k and not k.startswith("test/")}
    return metrics


def checkpoint_title(checkpoint: dict[str, Any]) -> str:
    """Return a title that names a checkpoint, as in status.json, and the metric that chose it."""
    title = f"{checkpoint['is']} checkpoint, step {checkpoint['step']}"
    if "metric" not in checkpoint:
        return title
    kind = "highest" if checkpoint["mode"] == "max" else "lowest"
    return f"{title} ({checkpoint['metric']} {checkpoint['value']:.4g}, the {kind})"


def title_of(run: Run, checkpoint: Path) -> str:
    """Return a title for a checkpoint of a run, which may still be training."""
    best = run.status.get("checkpoint") or {}
    if best.get("step") == step_of(checkpoint):
        return checkpoint_title(best)
    name = "best " if checkpoint == run.best_checkpoint() else "last " if checkpoint in run.checkpoints()[:1] else ""
    return f"{name}checkpoint, step {step_of(checkpoint)}"


def metrics_title(run: Run) -> str:
    """Return a title for `latest_metrics`: the checkpoint that they belong to."""
    status = run.status
    if "checkpoint" in status:
        return checkpoint_title(status["checkpoint"])
    return "test/: best checkpoint; train/, val/: last logged values" if status.get("metrics") else "last values logged"


def print_results(run: Run, results: dict[str, Any]) -> None:
    """Print a finished run's metrics, the checkpoint that they belong to, and where the run is."""
    console.print(metrics_table(results["metrics"], checkpoint_title(results["checkpoint"])))
    put(f"run: {relative_to_cwd(run.path)}")


def best_value(run: Run) -> float | None:
    """Return a finished run's value of the metric that chooses its best checkpoint, for Hydra's sweepers."""
    monitor = run.config["checkpoint"].get("monitor") or run.manifest.get("monitor")
    return run.status.get("metrics", {}).get(monitor)


def metrics_table(metrics: dict[str, float], title: str) -> Table:
    """Return a table with a row for each metric and a column for each stage."""
    stages = [s for s in STAGE_COLORS if any(name.startswith(f"{s}/") for name in metrics)]
    stages += sorted({name.partition("/")[0] for name in metrics} - set(stages))
    style: dict[str, Any] = {"title_justify": "left", "box": None, "pad_edge": False, "header_style": "dim"}
    table = Table("", *map(escaped, stages), title=escaped_text(title), **style)
    names = dict.fromkeys(name.partition("/")[2] for name in metrics)
    for name in sorted(names, key=lambda name: name != "loss"):  # the loss first, the others in their order
        values = [metrics.get(f"{stage}/{name}") for stage in stages]
        table.add_row(escaped_text(name), *("" if value is None else f"{value:.4g}" for value in values))
    return table


def main_metric(metrics: dict[str, Any], manifest: dict[str, Any]) -> str | None:
    """Return the name of the main metric: the one that chooses the best checkpoint, on the test split if possible."""
    monitor = (manifest.get("raw") or {}).get("checkpoint", {}).get("monitor") or manifest.get("monitor")
    for name in ([monitor.partition("/")[2]] if monitor else []) + ["accuracy", "acc", "loss"]:
        for stage in ("test", "val", "train"):
            for key in (f"{stage}/{name}", f"{stage}/{name}/dataloader_idx_0"):  # the first of several loaders
                if key in metrics:
                    return key
    names = [name for name in metrics if name.startswith(("test/", "val/"))]
    return next(iter(names or (name for name in metrics if name.startswith("train/") and "loss" in name)), None)


def seconds_worked(status: dict[str, Any]) -> float | None:
    """Return the seconds that the run has worked since it was last started."""
    return status["heartbeat"] - status["started"] if "started" in status and "heartbeat" in status else None


def duration(seconds: float | None) -> str:
    """Format a time span in its two largest units: 3 d 04 h, 1 h 05 min, 12 min 30 s, 8 s."""
    if seconds is None or not math.isfinite(seconds):  # in a damaged record
        return ""
    minutes, remainder = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {remainder:02} s" if minutes else f"{remainder} s"


def _tail(path: Path) -> list[bytes]:
    """Return the last whole lines of a file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL))
        lines = file.read().splitlines(keepends=True)
    return [line for line in lines[1 if size > TAIL else 0 :] if line.endswith(b"\n")]
