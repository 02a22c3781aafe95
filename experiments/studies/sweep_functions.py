"""Are the sweeper's samplers what Optuna's are? Regret on test functions: our sweeps, bare Optuna, as large a grid.

sweep_functions.py [--seeds 5] [--samplers gp,tpe] [--functions Branin,ZDT1-5]. The sweeps are those of a plain
Hydra application, with a launcher that composes no configs, for that takes longer than the functions; beside each
sampler's regret stands that of the same sampler kept in one Optuna study in memory.
"""

import argparse
import contextlib
import io
import itertools
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, cos, e, exp, pi, sqrt
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import optuna
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from scipy import stats

from leyden.config.locations import CONF
from leyden.sweep.directory import Sweep
from leyden.sweep.settings import SAMPLERS

Point = Sequence[float]
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

# Hartmann's constants for six dimensions (Dixon & Szegö 1978)
ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def branin(x: Point) -> float:
    """Branin's function, of two variables and three equal minima."""
    bowl = x[1] - 5.1 / (4 * pi**2) * x[0] ** 2 + 5 / pi * x[0] - 6
    return bowl**2 + 10 * (1 - 1 / (8 * pi)) * cos(x[0]) + 10


def hartmann(x: Point) -> float:
    """Hartmann's function of six variables."""
    return float(-ALPHA @ np.exp(-(A * (np.array(x) - P) ** 2).sum(1)))


def rosenbrock(x: Point) -> float:
    """Rosenbrock's valley."""
    return sum(100 * (b - a**2) ** 2 + (1 - a) ** 2 for a, b in itertools.pairwise(x))


def ackley(x: Point) -> float:
    """Ackley's function: many small pits round a deep one."""
    mean = sum(v**2 for v in x) / len(x)
    return -20 * exp(-0.2 * sqrt(mean)) - exp(sum(cos(2 * pi * v) for v in x) / len(x)) + 20 + e


def zdt1(x: Point) -> tuple[float, float]:
    """ZDT1 (Zitzler, Deb & Thiele 2000), two objectives: none surpasses another where all but the first are 0."""
    g = 1 + 9 * sum(x[1:]) / (len(x) - 1)
    return x[0], g * (1 - sqrt(x[0] / g))


@dataclass
class Problem:
    """A function, the interval of each of its variables, its minimum, and how many evaluations a search has."""

    function: Callable[[Point], Any]
    intervals: list[tuple[float, float]]
    minimum: float
    budget: int
    samplers: tuple[str, ...] = ("random", "qmc", "tpe", "gp", "cmaes")

    @property
    def directions(self) -> list[str]:
        """One for each objective."""
        return ["minimize"] * np.size(self.function([low for low, _ in self.intervals]))

    def regret(self, found: list[Sequence[float]]) -> float:
        """How far the best is from the minimum; of two objectives, what the front leaves of the hypervolume."""
        if len(self.directions) == 1:
            return min(value for (value,) in found) - self.minimum
        return -hypervolume(found) - self.minimum


CORNER = (1.0, 10.0)  # the worst of ZDT1
PROBLEMS = {
    "Branin": Problem(branin, [(-5.0, 10.0), (0.0, 15.0)], 0.397887, 64),
    "Hartmann-6": Problem(hartmann, [(0.0, 1.0)] * 6, -3.322368, 64),
    "Rosenbrock-5": Problem(rosenbrock, [(-2.0, 2.5)] * 5, 0.0, 64),
    "Ackley-5": Problem(ackley, [(-20.0, 40.0)] * 5, 0.0, 64),  # not in the middle, where CMA-ES begins
    "ZDT1-5": Problem(zdt1, [(0.0, 1.0)] * 5, -(10 - 1 / 3), 256, ("random", "qmc", "tpe", "nsga2")),
}


def hypervolume(front: list[Sequence[float]]) -> float:
    """Measure the area between what was found and the corner."""
    area, height = 0.0, CORNER[1]
    for x, y in sorted(front):
        if y < height:
            area, height = area + (CORNER[0] - x) * (height - y), y
    return area


class Evaluate(Launcher):
    """Evaluates a function at what the overrides say."""

    __module__ = "hydra_plugins.evaluate"  # from where alone Hydra takes plugins; see main

    def __init__(self, problem: str) -> None:
        self._function = PROBLEMS[problem].function

    def setup(self, **_: Any) -> None:
        """Nothing of Hydra's is needed."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Read the point from `+x0=0.5`, …."""
        points = [[float(text.partition("=")[2]) for text in overrides] for overrides in job_overrides]
        return [JobReturn(_return_value=self._function(point), status=JobStatus.COMPLETED) for point in points]


@hydra.main(version_base=None, config_path=None)
def application(_: DictConfig) -> None:
    """Stand for any Hydra application."""


def through_the_sweeper(name: str, sampler: str, seed: int) -> float:
    """Search with `hydra/sweeper=leyden`."""
    problem = PROBLEMS[name]
    several = len(problem.directions) > 1
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        sys.argv = [
            *(
                sys.argv[0],
                "-m",
                f"hydra.searchpath=[file://{CONF}]",
                "hydra/sweeper=leyden",
                "hydra/launcher=evaluate",
            ),
            *("hydra/job_logging=none", "hydra/hydra_logging=none", f"hydra.launcher.problem={name}"),
            *(f"hydra.sweep.dir={folder}/sweep", f"hydra.sweeper.sampler={sampler}", f"hydra.sweeper.seed={seed}"),
            *(f"hydra.sweeper.n_trials={problem.budget}", "hydra.sweeper.direction=minimize"),
            *(("hydra.sweeper.objective=[f0,f1]", "hydra.sweeper.direction=[minimize,minimize]") if several else ()),
            *(f"+x{i}=interval({low},{high})" for i, (low, high) in enumerate(problem.intervals)),
        ]
        application()
        return problem.regret([trial.values for trial in Sweep(Path(folder, "sweep")).study.trials])


def bare(name: str, sampler: str, seed: int) -> float:
    """Search with one sampler object on a study in memory."""
    problem = PROBLEMS[name]
    node = dict(SAMPLERS[sampler])
    chosen = getattr(optuna.samplers, node.pop("_target_").rpartition(".")[2])(**node, seed=seed)
    study = optuna.create_study(directions=problem.directions, sampler=chosen)
    study.optimize(
        lambda trial: problem.function(
            [trial.suggest_float(f"x{i}", *interval) for i, interval in enumerate(problem.intervals)]
        ),
        problem.budget,
    )
    return problem.regret([trial.values for trial in study.trials])


def grid(problem: Problem) -> float:
    """Evaluate a full grid of as many points or a few more, in the middles of equal cells."""
    count, axes = 1, []
    for place, (low, high) in enumerate(problem.intervals):
        number = ceil(round((problem.budget / count) ** (1 / (len(problem.intervals) - place)), 9))
        axes.append([low + (high - low) * (i + 0.5) / number for i in range(number)])
        count *= number
    return problem.regret([np.atleast_1d(problem.function(point)).tolist() for point in itertools.product(*axes)])


def main() -> None:
    """Print a row for each function and sampler: mean and deviation of the regret, and p of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samplers", type=lambda text: text.split(","), default=list(SAMPLERS))
    parser.add_argument("--functions", type=lambda text: text.split(","), default=list(PROBLEMS))
    options = parser.parse_args()
    sys.modules[Evaluate.__module__] = sys.modules[__name__]
    Plugins.instance().register(Evaluate)
    node = {"_target_": f"{Evaluate.__module__}.Evaluate", "problem": "???"}
    ConfigStore.instance().store(group="hydra/launcher", name="evaluate", node=node)
    print(f"{'':14}{'evaluations':>12} {'sampler':8}{'ours':>22}{'bare Optuna':>22}{'p':>8}{'grid':>10}")
    for name in options.functions:
        problem = PROBLEMS[name]
        for sampler in (s for s in problem.samplers if s in options.samplers):
            ours, theirs = (
                [search(name, sampler, seed) for seed in range(options.seeds)] for search in (through_the_sweeper, bare)
            )
            p = stats.mannwhitneyu(ours, theirs).pvalue
            print(
                f"{name:14}{problem.budget:12} {sampler:8}{_spread(ours):>22}{_spread(theirs):>22}{p:8.2f}"
                f"{grid(problem):10.3g}",
                flush=True,
            )


def _spread(numbers: list[float]) -> str:
    return f"{statistics.fmean(numbers):.3g} ± {statistics.stdev(numbers):.2g}"


if __name__ == "__main__":
    main()
