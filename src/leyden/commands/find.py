"""`leyden find lr|batch_size [overrides]`: measure, in a minute or so, what to set before a long run."""

import importlib
import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from leyden.commands.arguments import Arguments
from leyden.config.compose import compose
from leyden.config.composition import Composition
from leyden.config.locations import relative_to_cwd
from leyden.console import logging_to, put
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.run.directory import new_run_id, runs_root
from leyden.signals import Stop

RANGES: dict[str, tuple[float, float | None]] = {"lr": (1e-6, 10.0), "batch_size": (8, None)}


def main(arguments: list[str]) -> int:
    """Check what is to be trained, and hand over to what measures it."""
    parser = Arguments("find", "Measure what to set before a long run; nothing that is trained stays.")
    parser.add_argument("what", choices=tuple(RANGES), help="the learning rate, or the number of samples in a batch")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what leyden train takes")
    parser.add_argument("--min", type=float, help="where to begin; by default 1e-6, and 8 samples on each device")
    parser.add_argument("--max", type=float, help="where to end at the latest; by default 10, and what fits")
    parser.add_argument("--steps", type=int, help="lr: from one to the other; by default 100")
    options = parser.parse_intermixed_args(arguments)
    low, high = RANGES[options.what]
    low, high = options.min or low, options.max or high
    if low <= 0 or (high is not None and high <= low):
        raise UserError(f"--min={low:g} --max={high:g}: should be above 0, and --max above --min")
    if options.steps is not None and (options.what != "lr" or options.steps < 20):
        raise UserError(f"--steps={options.steps}: is for leyden find lr, and 20 or more")
    composition = compose(options.overrides)
    folder = runs_root() / composition.config["name"] / f"find-{options.what}-{new_run_id()}"
    try:
        with logging_to(folder / "log.txt"), Stop():
            finder = importlib.import_module(f"leyden.commands.find_{options.what}")  # seconds, with torch
            return finder.find(composition, folder, low, high, **({"steps": options.steps} if options.steps else {}))
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def save(folder: Path, name: str, composition: Composition, figure: Any, facts: dict[str, Any]) -> None:
    """Leave the plot, and the values with what they were measured on; say where."""
    about = {"created": datetime.now().astimezone().isoformat(timespec="seconds"), "overrides": composition.overrides}
    write_atomically(folder / f"{name}.json", json.dumps({**about, **facts, "config": composition.config}, indent=2))
    figure.savefig(folder / f"{name}.png")
    shown = relative_to_cwd(folder)
    put(f"{shown / name}.png, {name}.json")
