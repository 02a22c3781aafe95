"""The plots that make sense for a sweep's trials, drawn by Optuna for an interactive page."""

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from leyden.loggers.metrics_file import read_metrics
from leyden.sweep.directory import Sweep
from leyden.sweep.settings import Objective
from leyden.sweep.table import rank_trials, short_names, state_name

if TYPE_CHECKING:
    import plotly.graph_objects

MIN_TRIALS_FOR_IMPORTANCES = 8  # finished trials
MAX_KEYS = {"slice": 6, "contour": 2, "parallel_coordinate": 8}  # most important keys that each kind of plot shows
# trials that each kind of plot shows; the size of a contour plot grows with their square
MAX_TRIALS = {"contour": 150, "parallel_coordinate": 300, "intermediate_values": 300}
MAX_POINTS = 100  # points of a learning curve
# the colours of the states of trials
INK, GREY, BLUE, RED, GREEN, PURPLE = "#1c2833", "#7f8791", "#0072b2", "#c0392b", "#1e8449", "#b6a6cf"
COLORS = {"finished": BLUE, "pruned": PURPLE, "failed": RED, "running": GREEN, "queued": GREY}
COLORS["interrupted"] = "#d68910"


@dataclass(frozen=True)
class Plot:
    """A plot by `optuna.visualization.plot_<kind>` of a study and some of its keys; `name` is its id in the page."""

    kind: str
    name: str
    title: str
    study: Study
    target: str = ""
    keys: Sequence[str] | None = None
    is_alive: bool = True  # whether a sweeper still works on the running trials

    @property
    def width(self) -> int:
        """The number of panels that are side by side."""
        return len(self.keys or ()) if self.kind == "slice" else 1

    @cached_property
    def best(self) -> int | None:
        """The number of the best trial, which is drawn in another colour."""
        return (
            None
            if len(self.study.directions) > 1 or not _completed_trials(self.study)
            else self.study.best_trial.number
        )


def plots(sweep: Sweep) -> list[Plot]:
    """List the plots that make sense for a sweep's current trials."""
    objectives = sweep.objectives
    study = _copy_study(sweep, range(len(objectives)))
    all_plots = []
    if len(objectives) in (2, 3) and sweep.best_trials():
        all_plots.append(Plot("pareto_front", "front", "Pareto front", study))
    for index, objective in enumerate(objectives):
        all_plots += _plots_of_objective(sweep, _copy_study(sweep, [index]), objective)
    if any(trial.datetime_complete for trial in study.get_trials(deepcopy=False)):
        all_plots.append(Plot("timeline", "timeline", "Timeline", study, is_alive=sweep.is_alive))
    return all_plots


def compute_param_importances(sweep: Sweep) -> dict[str, float]:
    """Return each key's importance for the first objective, the largest first; they sum to 1."""
    return _importances_in(_copy_study(sweep, [0]))


def _plots_of_objective(sweep: Sweep, study: Study, objective: Objective) -> Iterator[Plot]:
    """Yield the plots of one objective."""
    metric, is_single = objective.metric, len(sweep.objectives) == 1

    def plot(kind: str, name: str, title: str, study: Study, keys: Sequence[str] | None = None) -> Plot:
        keys = None if keys is None else keys[: MAX_KEYS.get(kind)]
        name, title = (name, title) if is_single else (f"{name}-{metric.replace('/', '-')}", f"{title}: {metric}")
        return Plot(kind, name, title, study, metric, keys)

    completed_trials = _completed_trials(study)
    if len(completed_trials) > 1:
        yield plot("optimization_history", "history", "History", study)
    curves = _add_curves(sweep, study, objective)
    if any(len(trial.intermediate_values) > 1 for trial in curves.get_trials(deepcopy=False)):
        yield plot("intermediate_values", "curves", "Learning curves", curves)
    varied_keys, shared_keys = _varied_keys(completed_trials), _shared_keys(completed_trials)
    weights = _importances_in(study)
    keys = list(weights) or shared_keys  # conditional keys are not in all trials, so they only have slices
    if weights:
        yield plot("param_importances", "importances", "Importances", study, keys)
    if len(keys) > 1:
        thinned_study = _thin_out(study, objective, "parallel_coordinate")
        yield plot("parallel_coordinate", "parallel", "Parallel coordinates", thinned_study, keys)
    if varied_keys:
        yield plot("slice", "slices", "Slices", study, [*keys, *(key for key in varied_keys if key not in keys)])
    if len(keys) > 1 and len(completed_trials) > 3:
        yield plot("contour", "contours", "Contours", _thin_out(study, objective, "contour"), keys)


def _importances_in(study: Study) -> dict[str, float]:
    completed_trials = _completed_trials(study)
    keys = _shared_keys(completed_trials)
    num_values = len({trial.value for trial in completed_trials})
    if len(completed_trials) < MIN_TRIALS_FOR_IMPORTANCES or num_values == 1 or len(keys) < 2:
        return {}
    with warnings.catch_warnings(action="ignore"):  # Optuna calls this experimental
        return optuna.importance.get_param_importances(study, params=keys)


def _varied_keys(completed_trials: Sequence[FrozenTrial]) -> list[str]:
    """List the keys that differ among the finished trials that have them."""
    values: dict[str, set] = {}
    for trial in completed_trials:
        for key, value in trial.params.items():
            values.setdefault(key, set()).add(value)
    return [key for key, distinct_values in values.items() if len(distinct_values) > 1]


def _shared_keys(completed_trials: Sequence[FrozenTrial]) -> list[str]:
    """List the keys that differ among the finished trials, and that all of them have."""
    return [key for key in _varied_keys(completed_trials) if all(key in trial.params for trial in completed_trials)]


def _completed_trials(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


# Drawing


def to_html(plot: Plot) -> str:
    """Draw a plot as a part of a page, with one button, which saves the plot as SVG."""
    config = {
        "responsive": True,
        "displayModeBar": "hover",
        "displaylogo": False,
        "modeBarButtons": [["toImage"]],
        "toImageButtonOptions": {"format": "svg", "filename": plot.name},
    }
    return draw(plot).to_html(
        full_html=False, include_plotlyjs=False, div_id=plot.name, default_height=None, config=config
    )


def draw(plot: Plot) -> "plotly.graph_objects.Figure":
    """Draw a plot, as wide as its container."""
    options = {} if plot.keys is None else {"params": list(plot.keys)}
    if plot.kind not in ("intermediate_values", "timeline", "pareto_front"):
        options["target_name"] = plot.target
    with warnings.catch_warnings(action="ignore"):  # Optuna calls some of its functions experimental
        figure = getattr(optuna.visualization, f"plot_{plot.kind}")(plot.study, **options)
    figure.update_layout(
        template="plotly_white",
        title=None,
        autosize=True,
        width=None,
        height=360,
        margin={"l": 60, "r": 20, "t": 30, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        colorway=[BLUE, RED, GREEN, GREY],
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"},  # left of the button
    )
    figure.for_each_xaxis(lambda axis: _label_powers_of_ten(plot, axis))
    figure.for_each_yaxis(lambda axis: _label_powers_of_ten(plot, axis))
    match plot.kind:
        case "param_importances":
            figure.update_layout(xaxis_title=None, yaxis_title=None)
        case "pareto_front":
            for trace, name, color in zip(figure.data, ("others", "Pareto-optimal"), (GREY, RED), strict=True):
                trace.update(name=name, marker={"color": color, "showscale": False}, showlegend=True)
        case "intermediate_values":
            _style_curves(plot, figure)
        case "timeline":
            figure.update_layout(xaxis_title=None, yaxis_title="trial")
            for trace in figure.data:
                state = state_name(TrialState[trace.name], alive=plot.is_alive)
                trace.update(name=state, marker_color=COLORS[state])
    return figure


def _label_powers_of_ten(plot: Plot, axis: "plotly.graph_objects.layout.XAxis") -> None:
    """On the logarithmic axis of a key that spans several powers of ten, label only the powers."""
    if axis.type == "log":
        trials = plot.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        values = [trial.params[axis.title.text] for trial in trials if axis.title.text in trial.params]
        is_wide = max(values) > 30 * min(values)
        axis.update(dtick=1 if is_wide else None, exponentformat="power" if is_wide else "none")


def _style_curves(plot: Plot, figure: "plotly.graph_objects.Figure") -> None:
    """Draw the curve of the best trial above the others, and the curves of pruned trials below them."""
    max_length = max(len(trace.x) for trace in figure.data)
    figure.update_layout(xaxis_title="validation", yaxis_title=plot.target, xaxis_dtick=1 if max_length < 10 else None)
    trials = plot.study.get_trials(deepcopy=False)
    for trace in figure.data:
        number = int(trace.name.removeprefix("Trial"))
        if number == plot.best:
            color, width, opacity, layer = RED, 2.4, 1.0, 2
        elif trials[number].state == TrialState.COMPLETE:
            color, width, opacity, layer = BLUE, 1.2, 0.6, 1
        else:
            color, width, opacity, layer = PURPLE, 1.0, 0.6, 0
        trace.update(mode="lines", line={"color": color, "width": width}, opacity=opacity, zorder=layer)


# Copies of studies in memory


def _copy_study(sweep: Sweep, indices: Sequence[int]) -> Study:
    """Copy a study with the objectives at `indices` and short names; a trial without finite values becomes failed."""
    trials, trial_copies = sweep.study.get_trials(deepcopy=False), []
    names = short_names(trials)
    for trial in trials:
        trial_copy = _copy_trial(
            trial,
            values=[trial.values[index] for index in indices] if trial.values else None,
            params={names[key]: value for key, value in trial.params.items()},
            distributions={names[key]: kind for key, kind in trial.distributions.items()},
            user_attrs={},
            system_attrs={},
        )
        is_finite = bool(trial.values) and all(map(math.isfinite, trial_copy.values))
        trial_copies.append(trial_copy if is_finite else _without_values(trial_copy))
    return _new_study(trial_copies, [sweep.objectives[index] for index in indices])


def _thin_out(study: Study, objective: Objective, kind: str) -> Study:
    """Copy a study with at most `MAX_TRIALS[kind]` finished trials, evenly spaced from the best to the worst."""
    ranking = rank_trials(_completed_trials(study), [objective], [])
    shown_numbers = {trial.number for trial in _evenly_spaced(ranking, MAX_TRIALS[kind])}
    omitted_numbers = {trial.number for trial in ranking} - shown_numbers
    trials = study.get_trials(deepcopy=False)
    return _new_study([_without_values(t) if t.number in omitted_numbers else t for t in trials], [objective])


def _add_curves(sweep: Sweep, study: Study, objective: Objective) -> Study:
    """Copy a study with learning curves: the values that trials reported, else those that their first runs logged.

    One step of a curve is one validation. If there are many trials, only some get curves, the best among them.
    """
    trials = study.get_trials(deepcopy=False)
    have_reported = any(trial.intermediate_values for trial in trials)
    runs = {} if have_reported else sweep.runs()
    ranking = rank_trials(trials, [objective], [])
    trials_with_curve = [t for t in ranking if t.intermediate_values or sweep.job_numbers(t.number)[0] in runs]
    curves = {}
    for trial in _evenly_spaced(trials_with_curve, MAX_TRIALS["intermediate_values"]):
        curve = sorted(trial.intermediate_values.items())
        if not have_reported:
            rows = read_metrics(runs[sweep.job_numbers(trial.number)[0]].path / "metrics.jsonl", name=objective.metric)
            curve = list(enumerate((row[objective.metric] for row in rows if objective.metric in row), start=1))
        curves[trial.number] = dict(_evenly_spaced(curve, MAX_POINTS))
    return _new_study([_copy_trial(t, intermediate_values=curves.get(t.number, {})) for t in trials], [objective])


def _new_study(trials: Sequence[FrozenTrial], objectives: Sequence[Objective]) -> Study:
    study = optuna.create_study(directions=[objective.direction for objective in objectives])
    with warnings.catch_warnings(action="ignore"):  # Optuna calls this experimental
        study.set_metric_names([objective.metric for objective in objectives])
    study.add_trials(trials)
    return study


def _copy_trial(trial: FrozenTrial, **changes: Any) -> FrozenTrial:
    """Copy a trial, and set some attributes of the copy."""
    trial_copy = copy.copy(trial)
    for name, value in changes.items():
        setattr(trial_copy, name, value)
    return trial_copy


def _without_values(trial: FrozenTrial) -> FrozenTrial:
    """Copy a trial without its values; the copy of a finished trial counts as failed."""
    has_finished = trial.state == TrialState.COMPLETE
    return _copy_trial(trial, state=TrialState.FAIL if has_finished else trial.state, values=None)


def _evenly_spaced(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
