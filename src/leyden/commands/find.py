"""`leyden find lr|batch_size [overrides]`: suggest a learning rate or a batch size, in about a minute."""

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from leyden.commands.arguments import Arguments
from leyden.config.compose import compose
from leyden.config.composition import Composition, value_at
from leyden.config.locations import relative_to_cwd
from leyden.console import console, logging_to, put
from leyden.distributed.signals import Stop
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.files.formats import MEASUREMENTS
from leyden.run.directory import new_run_id, runs_root
from leyden.run.freeze import with_run_paths

RANGES: dict[str, tuple[float, float | None]] = {"lr": (1e-6, 10.0), "batch_size": (8, None)}
NUM_STEPS = 100  # default length of a learning-rate range test
MAX_ROWS = 12  # a longer table of learning rates is thinned


def main(arguments: list[str]) -> int:
    """Check the config, measure, and print a suggestion."""
    parser = Arguments("find", "Suggest a learning rate or a batch size; the trained weights are discarded.")
    parser.add_argument("what", choices=tuple(RANGES), help="the learning rate, or the number of samples in a batch")
    parser.add_overrides()
    parser.add_argument("--min", type=float, help="the smallest value; by default 1e-6, and 8 samples on each device")
    parser.add_argument("--max", type=float, help="the largest value; by default 10, and what fits in memory")
    parser.add_argument("--steps", type=int, help="for lr: the number of steps, by default 100")
    options = parser.parse_intermixed_args(arguments)
    low, high = RANGES[options.what]
    low, high = options.min or low, options.max or high
    if low <= 0 or (high is not None and high <= low):
        raise UserError(f"--min={low:g} --max={high:g}: --min should be above 0, and --max above --min")
    if options.steps is not None and (options.what != "lr" or options.steps < 20):
        raise UserError(f"--steps={options.steps}: should be 20 or more, and only for leyden find lr")
    composition = compose(options.overrides)
    folder = runs_root() / composition.config["name"] / f"find-{options.what}-{new_run_id()}"
    try:
        with logging_to(folder / "log.txt"), Stop():
            if options.what == "batch_size":
                return _find_batch_size(composition, folder, low, high)
            assert high is not None
            return _find_lr(composition, folder, low, high, options.steps or NUM_STEPS)
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _find_lr(composition: Composition, folder: Path, low: float, high: float, steps: int) -> int:
    """Print and save a learning-rate range test."""
    from leyden.figures import plots  # loads matplotlib
    from leyden.training.find_lr import range_test  # loads torch, which takes seconds

    result = range_test(with_run_paths(composition).config, low, high, steps)
    table = Table("lr", "loss", box=None, pad_edge=False, header_style="dim")
    rows = range(0, len(result.rates), -(-len(result.rates) // MAX_ROWS))
    for k in sorted({*rows, *([] if result.best is None else [result.best])}):
        style = "bold" if k == result.best else ""
        table.add_row(f"{result.rates[k]:.2e}", f"{result.smoothed_losses[k]:.4g}", style=style)
    console.print(table)
    suggestion = result.suggestion
    facts = {"lr": result.rates.tolist(), "loss": result.losses.tolist(), "smoothed": result.smoothed_losses.tolist()}
    figure = plots.lr_range(result.rates, result.losses, result.smoothed_losses, suggestion)
    _save(folder, "lr", composition, figure, {**facts, "suggestion": suggestion})
    if suggestion is None:
        print("the loss never falls by more than its noise: increase --steps or data.batch_size")
        return 1
    key = "optimizer.lr" if value_at(composition.config, "optimizer.lr") is not None else "the learning rate"
    print(f"where the smoothed loss falls steepest: {key}={suggestion:g}")
    return 0


def _find_batch_size(composition: Composition, folder: Path, low: float, high: float | None) -> int:
    """Print and save the measured sizes, and suggest the smallest one with nearly the best throughput."""
    from leyden.callbacks.throughput import format_number  # loads matplotlib and torch, which takes seconds
    from leyden.figures import plots
    from leyden.training import find_batch_size

    num_ranks = find_batch_size.num_ranks(composition.config["trainer"])
    if num_ranks > 1:
        print(f"measured on one device; batch sizes and throughput are for all {num_ranks}, without communication")
    rows: list[dict[str, float]] = []
    too_large_size = None
    for measurement in find_batch_size.measure_sizes(composition, low, high):
        if measurement.failure:
            put(f"{measurement.batch_size:10}  {measurement.failure}")
            too_large_size = too_large_size if measurement.fits else measurement.batch_size
            continue
        if not rows:
            print(f"{'batch_size':>10}{'samples/s':>12}{'ms/step':>10}{'GB':>8}")
        row = {key: getattr(measurement, key) for key in ("batch_size", "samples_per_s", "step_ms", "memory_gb")}
        print(
            f"{row['batch_size']:10}{format_number(row['samples_per_s']):>12}{row['step_ms']:10.3g}{row['memory_gb']:8.3g}"
        )
        rows.append(row)
    rows.sort(key=lambda row: row["batch_size"])
    sizes, speeds = [int(row["batch_size"]) for row in rows], [row["samples_per_s"] for row in rows]
    suggestion = find_batch_size.suggest(dict(zip(sizes, speeds, strict=True)))
    facts = {"sizes": rows, "largest": sizes[-1], "fits_no_more": too_large_size, "suggestion": suggestion}
    _save(folder, "batch_size", composition, plots.batch_sizes(sizes, speeds, suggestion), facts)
    percent = 100 * (1 - find_batch_size.GOOD_ENOUGH)
    print(f"the smallest within {percent:.0f} % of the best throughput: data.batch_size={suggestion}")
    return 0


def _save(folder: Path, name: str, composition: Composition, figure: Any, facts: dict[str, Any]) -> None:
    """Save the plot, and the values together with their config; print the paths."""
    origin = {"created": datetime.now().astimezone().isoformat(timespec="seconds"), "overrides": composition.overrides}
    content = {**origin, **facts, "config": composition.config}
    write_atomically(folder / f"{name}.json", json.dumps(MEASUREMENTS.stamp(content), indent=2))
    figure.savefig(folder / f"{name}.png")
    put(f"{relative_to_cwd(folder) / name}.png, {name}.json")
