"""The plots that make sense for a sweep's trials, as data; `leyden.sweep.drawing` draws them."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from leyden.loggers.metrics_file import read_metrics
from leyden.sweep.directory import Sweep
from leyden.sweep.settings import Objective
from leyden.sweep.table import STATES, ranked, short_names

ENOUGH = 8  # finished trials from which on importances mean something
MAX_KEYS = {"slice": 6, "contour": 2, "parallel_coordinate": 8}  # in such a plot: the most important ones
MAX_TRIALS = {"contour": 150, "parallel_coordinate": 300, "intermediate_values": 300}  # a contour is their square
MAX_POINTS = 100  # of a learning curve


@dataclass(frozen=True)
class Plot:
    """`optuna.visualization.plot_<kind>` of a study with some of its keys; `name` is its file's."""

    kind: str
    name: str
    title: str
    study: Study
    target: str = ""
    keys: Sequence[str] | None = None
    is_alive: bool = True  # whether what is not done is still at work

    @property
    def width(self) -> int:
        """The number of plots side by side in it."""
        return len(self.keys or ()) if self.kind == "slice" else 1

    def word(self, state: TrialState) -> str:
        """Name the state of a trial."""
        return "interrupted" if state == TrialState.RUNNING and not self.is_alive else STATES[state]

    @cached_property
    def best(self) -> int | None:
        """The number of the best trial, which is drawn in another colour."""
        return None if len(self.study.directions) > 1 or not _done(self.study) else self.study.best_trial.number


def plots(sweep: Sweep) -> list[Plot]:
    """List the plots that make sense for a sweep's trials as they are."""
    trials, objectives = sweep.study.get_trials(deepcopy=False), sweep.objectives
    names = short_names(trials)
    together = _study([_copy(trial, names, trial.values) for trial in trials], objectives)
    drawn = []
    if len(objectives) in (2, 3) and sweep.best():
        drawn.append(Plot("pareto_front", "front", "Pareto front", together))
    for place in range(len(objectives)):
        drawn += _of_one(sweep, _alone(sweep, place), objectives[place])
    if any(trial.datetime_complete for trial in trials):
        drawn.append(Plot("timeline", "timeline", "Timeline", together, is_alive=sweep.is_alive))
    return drawn


def importances(sweep: Sweep) -> dict[str, float]:
    """Return each key's share in what makes trials good by the first objective, the largest first."""
    return _importances(_alone(sweep, 0))


def _of_one(sweep: Sweep, study: Study, objective: Objective) -> Iterator[Plot]:
    """Yield the plots of one objective."""
    metric, is_single = objective.metric, len(sweep.objectives) == 1

    def plot(kind: str, name: str, title: str, study: Study, keys: Sequence[str] | None = None) -> Plot:
        keys = None if keys is None else keys[: MAX_KEYS.get(kind)]
        name, title = (name, title) if is_single else (f"{name}-{metric.replace('/', '-')}", f"{title}: {metric}")
        return Plot(kind, name, title, study, metric, keys)

    completed = _done(study)
    if len(completed) > 1:
        yield plot("optimization_history", "history", "History", study)
    curves = _with_curves(sweep, study, objective)
    if any(len(trial.intermediate_values) > 1 for trial in curves.get_trials(deepcopy=False)):
        yield plot("intermediate_values", "curves", "Learning curves", curves)
    weights, varied, shared = _importances(study), _varied(completed), _shared(completed)
    keys = list(weights) or shared  # conditional ones are not in all trials, and have slices alone
    if weights:
        yield plot("param_importances", "importances", "Importances", study, keys)
    if len(keys) > 1:
        thinned = _thinned(study, objective, "parallel_coordinate")
        yield plot("parallel_coordinate", "parallel", "Parallel coordinates", thinned, keys)
    if varied:
        yield plot("slice", "slices", "Slices", study, [*keys, *(key for key in varied if key not in keys)])
    if len(keys) > 1 and len(completed) > 3:
        yield plot("contour", "contours", "Contours", _thinned(study, objective, "contour"), keys)


def _importances(study: Study) -> dict[str, float]:
    completed = _done(study)
    keys = _shared(completed)
    if len(completed) < ENOUGH or len({trial.value for trial in completed}) == 1 or len(keys) < 2:
        return {}
    with without_warnings():
        return optuna.importance.get_param_importances(study, params=keys)


def _varied(completed: Sequence[FrozenTrial]) -> list[str]:
    """List the keys that differ among the finished trials that have them."""
    values: dict[str, set] = {}
    for trial in completed:
        for key, value in trial.params.items():
            values.setdefault(key, set()).add(value)
    return [key for key, different in values.items() if len(different) > 1]


def _shared(completed: Sequence[FrozenTrial]) -> list[str]:
    """List the keys that differ among the finished trials, and that all of them have."""
    return [key for key in _varied(completed) if all(key in trial.params for trial in completed)]


def _done(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


# Copies of studies in memory, with short names


def _alone(sweep: Sweep, place: int) -> Study:
    """Copy a study as if it had one objective."""
    trials = sweep.study.get_trials(deepcopy=False)
    names = short_names(trials)
    copies = [_copy(trial, names, [trial.values[place]] if trial.values else None) for trial in trials]
    return _study(copies, [sweep.objectives[place]])


def _thinned(study: Study, objective: Objective, kind: str) -> Study:
    """Copy a study with no more finished trials than such a plot shows, from the best to the worst."""
    completed, trials = ranked(_done(study), [objective], []), study.get_trials(deepcopy=False)
    if len(completed) <= MAX_TRIALS[kind]:
        return study
    numbers = {trial.number for trial in _spread(completed, MAX_TRIALS[kind])}
    return _study([trial if trial.number in numbers else _copy(trial, {}, None) for trial in trials], [objective])


def _with_curves(sweep: Sweep, study: Study, objective: Objective) -> Study:
    """Copy a study with learning curves: what trials reported, else what their first runs recorded.

    A step is a validation. Of many trials only some have curves, the best among them.
    """
    trials = study.get_trials(deepcopy=False)
    reported = any(trial.intermediate_values for trial in trials)
    runs = {} if reported else sweep.runs()
    by_value = ranked(trials, [objective], [])
    with_curve = [t for t in by_value if t.intermediate_values or sweep.numbers(t.number)[0] in runs]
    curves = {}
    for trial in _spread(with_curve, MAX_TRIALS["intermediate_values"]):
        curve = sorted(trial.intermediate_values.items())
        if not reported:
            rows = read_metrics(runs[sweep.numbers(trial.number)[0]].path / "metrics.jsonl", name=objective.metric)
            curve = list(enumerate((row[objective.metric] for row in rows if objective.metric in row), start=1))
        curves[trial.number] = dict(_spread(curve, MAX_POINTS))
    return _study([_copy(t, {}, t.values, curves.get(t.number, {})) for t in trials], [objective])


class _Still(FrozenTrial):
    """A trial that is never changed, so the copies that Optuna makes of all trials, again and again, cost nothing."""

    def __deepcopy__(self, memo: dict) -> "_Still":
        return self


def _study(trials: Sequence[FrozenTrial], objectives: Sequence[Objective]) -> Study:
    study = optuna.create_study(directions=[objective.direction for objective in objectives])
    with without_warnings():
        study.set_metric_names([objective.metric for objective in objectives])
    study.add_trials(trials)
    return study


def _copy(
    trial: FrozenTrial,
    names: Mapping[str, str],
    values: Sequence[float] | None,
    curve: Mapping[int, float] | None = None,
) -> FrozenTrial:
    """Copy a trial with other values, its keys under short names; one that is finished without values has failed."""
    finite = bool(values) and all(map(math.isfinite, values or ()))
    return _Still(
        number=trial.number,
        trial_id=trial.number,
        state=TrialState.FAIL if trial.state == TrialState.COMPLETE and not finite else trial.state,
        value=None,
        values=values if finite else None,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params={names.get(key, key): value for key, value in trial.params.items()},
        distributions={names.get(key, key): kind for key, kind in trial.distributions.items()},
        user_attrs={},
        system_attrs={},
        intermediate_values=dict(trial.intermediate_values if curve is None else curve),
    )


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Take so many of a sequence, evenly, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(place * (len(items) - 1) / (count - 1))] for place in range(count)]


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress warnings: Optuna warns that its own functions are experimental, and of how they lay out figures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
