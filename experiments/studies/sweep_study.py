"""With what fraction of a grid's epochs does a search find as good a point? The small CNN on digits.

sweep_study.py FOLDER: trains a grid of 72 points, and sweeps over the continuous space around it, in FOLDER
(what is trained there already stays), tests the winners once, and replays searches among the grid's own points with
the curves that the grid left. Prints the tables and draws FOLDER/sweep_study.png.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from math import comb
from pathlib import Path

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import TrialState

from leyden.figures.plots import BLUE, GREEN, GREY, RED
from leyden.sweep.directory import Sweep
from leyden.sweep.plan import Plan, open_plan

EPOCHS, TRIALS, LIMIT = 9, 30, 3600.0  # LIMIT: seconds that a command may take
TASK = [
    *("experiment=cnn_digits", "sweep=cnn_digits", f"trainer.max_epochs={EPOCHS}"),
    *("+checkpoint.monitor=val/loss", "test=false", "expect=null"),
]
POINTS = ["optimizer.lr=1e-4,4e-4,1.6e-3,6.3e-3,2.5e-2,1e-1", "optimizer.weight_decay=1e-3,1e-1"]
GRID = ["hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=none", "hydra.sweeper.n_trials=null"]
ASHA, MEDIAN = "_target_:optuna.pruners.SuccessiveHalvingPruner", "_target_:optuna.pruners.MedianPruner"
METHODS = {  # sampler, pruner, colour
    "tpe-asha": ("tpe", f"{{{ASHA},min_resource:1,reduction_factor:3}}", RED),
    "tpe-later": ("tpe", f"{{{ASHA},min_resource:3,reduction_factor:3}}", BLUE),
    "tpe-median": ("tpe", f"{{{MEDIAN},n_warmup_steps:1}}", "#8e6bb0"),
    "tpe-none": ("tpe", "none", "#b8860b"),
    "random-asha": ("random", f"{{{ASHA},min_resource:1,reduction_factor:3}}", GREEN),
    "random-none": ("random", "none", "#5d6d7e"),
}
History = list[tuple[int, float]]  # epochs spent and the best value by then, after each trial


def leyden(*arguments: str) -> None:
    """Run a command, one thread for each process; its output matters only when it fails."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "leyden.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environ)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")


def train(folder: Path, *options: str) -> Sweep:
    """Train a sweep, or go on with it."""
    leyden("train", "-m", *TASK, *options, f"hydra.sweep.dir={folder}")
    return Sweep(folder)


def search(name: str) -> list[str]:
    """Write the options of a method."""
    sampler, pruner, _ = METHODS[name]
    return [f"hydra.sweeper.{key}={value}" for key, value in (("sampler", sampler), ("pruner", pruner))]


def history(sweep: Sweep) -> History:
    """Read what was spent and reached; a trial that was given up costs its epochs and reaches nothing."""
    spent, best, found = 0, float("inf"), []
    for trial in sweep.study.trials:
        spent += len(trial.intermediate_values)
        if trial.state == TrialState.COMPLETE:
            best = min(best, trial.values[0])
        found.append((spent, best))
    return found


def replay(curves: dict[tuple, list[float]], plan: Plan, seed: int) -> History:
    """Search among points whose curves are known, as the sweeper does."""
    settings = plan.settings.model_copy(update={"seed": seed})
    study = optuna.create_study(pruner=settings.build_pruner())
    spent, done, found = 0, {}, []
    for number in range(TRIALS):
        study.sampler = settings.build_sampler([], number)
        trial = study.ask()
        point = tuple(plan.space.suggest(trial).values())
        for epoch, value in enumerate([] if point in done else curves[point], 1):
            spent += 1
            trial.report(value, epoch)
            if epoch < EPOCHS and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            done[point] = min(curves[point])
            study.tell(trial, done[point])
        found.append((spent, min(done.values(), default=float("inf"))))
    return found


def in_random_order(values: list[float]) -> History:
    """Tell the best of k of the grid's points, for each k: the median over all orders."""
    ordered, count = sorted(values), len(values)

    def median(k: int) -> float:
        return next(v for place, v in enumerate(ordered) if 2 * comb(count - 1 - place, k) <= comb(count, k))

    return [(k * EPOCHS, median(k)) for k in range(1, count + 1)]


def test_accuracy(sweep: Sweep) -> float:
    """Test the best trial's best checkpoint, once."""
    run = sweep.runs()[sweep.job_numbers(sweep.best_trials()[0].number)[0]]
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
    parser.add_argument("--seeds", type=int, default=5, help="sampler seeds of each method that is trained")
    parser.add_argument("--replays", type=int, default=100, help="sampler seeds of each method that is replayed")
    parser.add_argument("--jobs", type=int, default=2, help="sweeps at the same time, each with one job at a time")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=["tpe-asha", "tpe-later"])
    options = parser.parse_args()
    folder = options.folder.resolve()
    grid = train(folder / "grid", *POINTS, *GRID, f"hydra.sweeper.n_jobs={options.jobs}")

    def trained(case: tuple[str, int]) -> Sweep:
        name, seed = case
        rest = (f"hydra.sweeper.seed={seed}", f"hydra.sweeper.n_trials={TRIALS}")
        return train(folder / f"{name}-{seed}", *search(name), *rest)

    cases = list(itertools.product(options.methods, range(options.seeds)))
    with ThreadPoolExecutor(options.jobs) as pool:
        sweeps = dict(zip(cases, pool.map(trained, cases), strict=True))
    methods = {name: [sweeps[name, seed] for seed in range(options.seeds)] for name in options.methods}
    report(grid, methods)
    curves = {
        tuple(t.params.values()): [v for _, v in sorted(t.intermediate_values.items())] for t in grid.study.trials
    }
    replayed = {}
    for name in METHODS:
        with open_plan([*TASK, *POINTS, *search(name)]) as plan:
            replayed[name] = [replay(curves, plan, seed) for seed in range(options.replays)]
    values = [min(curve) for curve in curves.values()]
    tell_replays(values, replayed)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    draw(left, "continuous space, trained", values, {n: [history(s) for s in sweeps] for n, sweeps in methods.items()})
    draw(right, "the grid's own points, replayed", values, replayed)
    figure.savefig(folder / "sweep_study.png", dpi=100)


def report(grid: Sweep, methods: dict[str, list[Sweep]]) -> None:
    """Print what was trained."""
    values = sorted(trial.values[0] for trial in grid.study.trials)
    total, best = len(values) * EPOCHS, grid.best_trials()[0]
    print(f"grid: {len(values)} points, {total} epochs; best {[round(value, 4) for value in values[:5]]}")
    print(f"  {best.params}; test accuracy {test_accuracy(grid):.4f}")
    for name, sweeps in methods.items():
        found = [history(sweep) for sweep in sweeps]
        until = [reached(one, values[0]) for one in found]
        there = [spent / total for spent in until if spent is not None]
        print(f"{name}: {len(there)} of {len(sweeps)} as good as the best of the grid, after {until} epochs")
        if there:
            print(f"  of the grid's epochs {spread(there, '.1%')}")
        print(f"  as good as the best tenth of the grid after {[reached(one, tenth(values)) for one in found]} epochs")
        print(f"  all trials: {[one[-1][0] for one in found]} epochs, {spread([one[-1][0] for one in found], '.0f')}")
        print(f"  best {[round(one[-1][1], 4) for one in found]}, {spread([one[-1][1] for one in found], '.4f')}")
        accuracies = [test_accuracy(sweep) for sweep in sweeps]
        print(f"  test accuracy {[round(one, 4) for one in accuracies]}, {spread(accuracies, '.4f')}")


def tell_replays(values: list[float], replayed: dict[str, list[History]]) -> None:
    """Print what was replayed: of the seeds that found it the median and quartiles of the epochs."""
    total = len(values) * EPOCHS
    print(
        f"{'':14}{'best found':>12}{'epochs / grid':>26}{'best tenth found':>18}{'epochs / grid':>26}{'all trials':>12}"
    )
    for name, found in replayed.items():
        print(f"{name:14}", end="")
        for target, width in ((min(values), 12), (tenth(values), 18)):
            spent = [s / total for one in found if (s := reached(one, target)) is not None]
            low, middle, high = np.quantile(spent, (0.25, 0.5, 0.75)) if spent else [np.nan] * 3
            print(f"{len(spent) / len(found):{width}.0%}{f'{middle:.1%} ({low:.1%} to {high:.1%})':>26}", end="")
        print(f"{statistics.fmean(one[-1][0] for one in found) / total:12.1%}")


def tenth(values: list[float]) -> float:
    """Return the value that the best tenth of the points reach."""
    return sorted(values)[len(values) // 10 - 1]


def spread(numbers: list[float], form: str) -> str:
    """Write the mean and the standard deviation."""
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{statistics.fmean(numbers):{form}} ± {deviation:{form}}"


def draw(axis: Axes, title: str, values: list[float], methods: dict[str, list[History]]) -> None:
    """Draw the best so far against the epochs spent: the median over seeds, where they are few with the quartiles."""
    known = zip(*in_random_order(values), strict=True)
    axis.step(*known, where="post", color=GREY, linestyle="--", label="grid, random order")
    axis.axhline(min(values), color=GREY, linewidth=0.8, linestyle=":")
    for name, found in methods.items():
        x = np.arange(EPOCHS, max(one[-1][0] for one in found) + 1)
        steps = [np.array(one).T for one in found]  # epochs and values, each (trials,)
        best = np.stack([np.append(np.inf, v)[np.searchsorted(s, x, side="right")] for s, v in steps])  # (seeds, x)
        low, middle, high = np.quantile(best, (0.25, 0.5, 0.75), axis=0, method="nearest")
        axis.step(x, middle, where="post", color=METHODS[name][2], label=name)
        if len(found) < 10:
            axis.fill_between(x, low, high, step="post", color=METHODS[name][2], alpha=0.12, linewidth=0)
    axis.set(xscale="log", yscale="log", title=title, xlabel="epochs spent", ylabel="best val/loss so far")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
