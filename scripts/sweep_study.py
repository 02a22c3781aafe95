"""With what fraction of a grid's epochs does a search find as good a point? The small CNN on digits, both as sweeps.

scripts/sweep_study.py FOLDER: trains the grid and each method's sweeps in FOLDER (what is trained there already
stays), tests the winners once, prints the table and draws FOLDER/sweep_study.svg.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import comb
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from optuna.trial import TrialState

from leyden.figures import BLUE, GREEN, GREY, RED
from leyden.sweep.directory import Sweep

EPOCHS, TRIALS, LIMIT = 9, 30, 3600.0  # LIMIT: seconds that a command may take
LEYDEN = [sys.executable, "-m", "leyden.cli"]
TRAIN = [
    *("train", "-m", "experiment=cnn_digits", "sweep=cnn_digits", f"trainer.max_epochs={EPOCHS}"),
    *("+checkpoint.monitor=val/loss", "test=false", "expect=null"),
]
GRID = [
    *("optimizer.lr=1e-4,4e-4,1.6e-3,6.3e-3,2.5e-2,1e-1", "optimizer.weight_decay=1e-3,1e-1"),
    *("hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=none", "hydra.sweeper.n_trials=null"),
]
METHODS = {  # sampler, pruner, colour
    "TPE + ASHA": ("tpe", "asha", RED),
    "TPE + median": ("tpe", "median", BLUE),
    "random + ASHA": ("random", "asha", GREEN),
    "TPE": ("tpe", "none", "#b8860b"),
}
History = list[tuple[int, float]]  # epochs spent, best value by then; one entry for each trial


def leyden(*arguments: str) -> None:
    """Run a command, one thread for each process; its output matters only when it fails."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*LEYDEN, *arguments], capture_output=True, text=True, timeout=LIMIT, env=environ)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")


def train(folder: Path, *options: str) -> Sweep:
    """Train a sweep, or go on with it."""
    leyden(*TRAIN, *options, f"hydra.sweep.dir={folder}")
    return Sweep(folder)


def history(sweep: Sweep) -> History:
    """Read what was spent and reached after each trial; a trial that was given up costs its epochs and reaches nothing."""
    spent, best, found = 0, float("inf"), []
    for trial in sweep.study.trials:
        spent += len(trial.intermediate_values)
        if trial.state == TrialState.COMPLETE:
            best = min(best, trial.values[0])
        found.append((spent, best))
    return found


def in_random_order(values: list[float]) -> History:
    """Expect the best of k of the grid's points, for each k: the mean over all orders."""
    ordered, count = sorted(values), len(values)
    means = (
        sum(v * comb(count - 1 - place, k - 1) for place, v in enumerate(ordered)) / comb(count, k)
        for k in range(1, count + 1)
    )
    return [(k * EPOCHS, mean) for k, mean in enumerate(means, 1)]


def test_accuracy(sweep: Sweep) -> float:
    """Test the best trial's best checkpoint, once."""
    run = sweep.runs_of(sweep.best()[0].number)[0]
    if not list(run.path.glob("evaluations/*/metrics.json")):
        leyden("evaluate", str(run.path))
    (path,) = run.path.glob("evaluations/*/metrics.json")
    return json.loads(path.read_text())["metrics"]["test/accuracy"]


def reached(found: History, target: float) -> int | None:
    """Return the epochs that were spent until a value as good as the target, None if there never was one."""
    return next((spent for spent, best in found if best <= target), None)


def main() -> None:
    """Train, test, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5, help="sampler seeds of each method")
    parser.add_argument("--jobs", type=int, default=2, help="sweeps at the same time, each with one job at a time")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS), help="some of them")
    options = parser.parse_args()
    folder = options.folder.resolve()
    grid = train(folder / "grid", *GRID, f"hydra.sweeper.n_jobs={options.jobs}")

    def search(case: tuple[str, int]) -> Sweep:
        name, seed = case
        sampler, pruner, _ = METHODS[name]
        place = folder / f"{sampler}-{pruner}-{seed}"
        choices = {"sampler": sampler, "pruner": pruner, "seed": seed, "n_trials": TRIALS}
        return train(place, *(f"hydra.sweeper.{key}={value}" for key, value in choices.items()))

    cases = list(itertools.product(options.methods, range(options.seeds)))
    with ThreadPoolExecutor(options.jobs) as pool:
        sweeps = dict(zip(cases, pool.map(search, cases), strict=True))
    methods = {name: [sweeps[name, seed] for seed in range(options.seeds)] for name in options.methods}
    report(grid, methods)
    found = {name: [history(sweep) for sweep in sweeps] for name, sweeps in methods.items()}
    draw(grid, found).savefig(folder / "sweep_study.svg")


def report(grid: Sweep, methods: dict[str, list[Sweep]]) -> None:
    """Print the tables."""
    values = sorted(trial.values[0] for trial in grid.study.trials)
    total, tenth = len(values) * EPOCHS, values[len(values) // 10 - 1]
    best = grid.best()[0]
    print(f"grid: {len(values)} points, {total} epochs; best {values[0]:.4f} {best.params}, then {values[1:4]}")
    print(f"test accuracy {test_accuracy(grid):.4f}; the best tenth of its points: {tenth:.4f} or less")
    show: Callable[[float | None], str] = lambda spent: "never" if spent is None else f"{spent}"
    for name, sweeps in methods.items():
        found = [history(sweep) for sweep in sweeps]
        until = [reached(one, values[0]) for one in found]
        there = [spent / total for spent in until if spent is not None]
        print(f"\n{name}: {len(there)} of {len(sweeps)} reach the best of the grid, after {list(map(show, until))} epochs")
        if there:
            print(f"  of the grid's epochs: {spread(there, '.1%')}")
        print(f"  the best tenth after {[show(reached(one, tenth)) for one in found]}")
        print(f"  all {TRIALS} trials: {[one[-1][0] for one in found]} epochs, {spread([one[-1][0] for one in found], '.0f')}")
        given_up = [sum(t.state == TrialState.PRUNED for t in sweep.study.trials) for sweep in sweeps]
        print(f"  given up: {given_up}; best {[round(one[-1][1], 4) for one in found]}, "
              f"{spread([one[-1][1] for one in found], '.4f')}")
        print(f"  test accuracy {spread([test_accuracy(sweep) for sweep in sweeps], '.4f')}")


def spread(numbers: list[float], form: str) -> str:
    """Write the mean and the standard deviation."""
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{statistics.fmean(numbers):{form}} ± {deviation:{form}}"


def draw(grid: Sweep, methods: dict[str, list[History]]) -> Figure:
    """Draw the best so far against the epochs spent: of each method the median over seeds, and from least to most."""
    values = [trial.values[0] for trial in grid.study.trials]
    epochs = np.arange(EPOCHS, len(values) * EPOCHS + 1)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    expected = in_random_order(values)
    axis.plot(*zip(*expected, strict=True), color=GREY, label="grid in random order, expected")
    axis.axhline(min(values), color=GREY, linewidth=0.8, linestyle=":", label="best of the grid")
    for name, found in methods.items():
        color, longest = METHODS[name][2], max(one[-1][0] for one in found)
        x = epochs[epochs <= longest]
        best = np.array([[min((b for s, b in one if s <= e), default=np.nan) for e in x] for one in found])  # (seeds, x)
        shown = np.isfinite(best).all(0)
        axis.plot(x[shown], np.median(best[:, shown], 0), color=color, label=name)
        axis.fill_between(x[shown], best[:, shown].min(0), best[:, shown].max(0), color=color, alpha=0.1, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel="epochs spent", ylabel="best val/loss so far")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
