"""A point of the search space while its jobs train: their results, and whether it can still be the best."""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from optuna.trial import FrozenTrial

from leyden.run.summary import metrics_of
from leyden.statistics import paired
from leyden.sweep.jobs import Ending, Job
from leyden.sweep.settings import MIN_PAIRS, Objective, Settings


@dataclass
class Point:
    """A trial in progress: its jobs, those still to be started, and the results of those that have finished."""

    trial: FrozenTrial
    jobs: list[Job]
    pending_jobs: deque[Job]
    results: dict[int, list[float]] = field(default_factory=dict)  # objectives by the job's index in `jobs`

    def index(self, job: Job) -> int:
        """Return a job's index in `jobs`."""
        return job.number - self.jobs[0].number

    def results_as_json(self) -> dict[str, list[float]]:
        """Return the results as a user attribute of the trial, whose keys are text."""
        return {str(index): results for index, results in sorted(self.results.items())}

    def means(self) -> list[float]:
        """Return the mean of each objective over the jobs."""
        return [statistics.fmean(column) for column in zip(*self.results.values(), strict=True)]

    def stds(self) -> list[float]:
        """Return the standard deviation of each objective over the jobs; there must be at least two."""
        return [statistics.stdev(column) for column in zip(*self.results.values(), strict=True)]

    def is_worse(self, best: FrozenTrial, settings: Settings, direction: str) -> bool:
        """Return whether the point is significantly worse than the best trial on the seeds and folds of both."""
        best_results = {int(index): results for index, results in best.user_attrs.get("values", {}).items()}
        common_indices = [index for index in self.results if index in best_results]
        if not settings.race or len(common_indices) < MIN_PAIRS:
            return False
        sign = 1 if direction == "maximize" else -1
        values = np.array([sign * self.results[index][0] for index in common_indices])
        best_values = np.array([sign * best_results[index][0] for index in common_indices])
        difference = paired(best_values, values, overlap=1 / (settings.folds - 1) if settings.folds else 0.0)
        return difference.value < 0 and difference.p is not None and difference.p / 2 < settings.race


def read_results(
    job: Job, ending: Ending, objectives: Sequence[Objective], settings: Settings
) -> tuple[list[float] | None, str]:
    """Return a finished job's values of the objectives, or None and the reason if one is missing or not finite.

    A grid does not need the values to choose its points, so they may be missing unless `hydra.sweeper.objective` names
    them.
    """
    results, reason = _read_objectives(job, ending, list(objectives))
    if results is None and settings.is_grid and not (job.run and settings.objective is not None):
        return [], ""
    for objective, value in zip(objectives, results or (), strict=False):
        if not math.isfinite(value):
            results, reason = None, f"{objective.metric} is {value}"
    return results, reason


def _read_objectives(job: Job, ending: Ending, objectives: list[Objective]) -> tuple[list[float] | None, str]:
    if job.run is None:
        value = ending.return_value
        values = list(value) if isinstance(value, list | tuple) else [value]
        are_numbers = all(isinstance(number, int | float) and not isinstance(number, bool) for number in values)
        if len(values) != len(objectives) or not are_numbers:
            return None, f"returned {value!r}, which is not {len(objectives)} numbers"
        return [float(number) for number in values], ""
    metrics = metrics_of(job.run)
    if missing_metrics := [objective.metric for objective in objectives if objective.metric not in metrics]:
        logged_names = ", ".join(name for name in metrics if not name.startswith("perf/"))
        return None, f"hydra.sweeper.objective={missing_metrics[0]} was not logged; logged: {logged_names}"
    return [metrics[objective.metric] for objective in objectives], ""
