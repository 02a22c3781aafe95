"""A sweep's plots, drawn by Optuna for an interactive page; every colour stands for a state."""

import warnings
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from leyden.sweep.plots import Plot
from leyden.sweep.table import state_name

if TYPE_CHECKING:
    import plotly.graph_objects

INK, GREY, BLUE, RED, GREEN, PURPLE = "#1c2833", "#7f8791", "#0072b2", "#c0392b", "#1e8449", "#b6a6cf"
COLORS = {"finished": BLUE, "pruned": PURPLE, "failed": RED, "running": GREEN, "queued": GREY}
COLORS["interrupted"] = "#d68910"


def to_html(plot: Plot) -> str:
    """Draw a plot as a part of a page; its only button saves the plot as SVG."""
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
    """Draw a plot, as wide as there is room."""
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
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"},  # beside the button
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
    """Label only powers of ten on the logarithmic axis of a key that spans more than one of them."""
    if axis.type == "log":
        trials = plot.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        values = [trial.params[axis.title.text] for trial in trials if axis.title.text in trial.params]
        is_wide = max(values) > 30 * min(values)
        axis.update(dtick=1 if is_wide else None, exponentformat="power" if is_wide else "none")


def _style_curves(plot: Plot, figure: "plotly.graph_objects.Figure") -> None:
    """Draw the curve of the best trial over the others, and those of pruned trials below them."""
    longest = max(len(trace.x) for trace in figure.data)
    figure.update_layout(xaxis_title="validation", yaxis_title=plot.target, xaxis_dtick=1 if longest < 10 else None)
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
