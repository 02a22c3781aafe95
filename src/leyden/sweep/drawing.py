"""A sweep's plots, drawn by Optuna for a page or as a picture; a colour means a state."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import Colormap, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, MaxNLocator, NullFormatter
from optuna.trial import TrialState

from leyden.figures.plots import BLUE, GREEN, GREY, RED
from leyden.sweep.plots import Plot, without_warnings

if TYPE_CHECKING:
    import plotly.graph_objects

logging.getLogger("matplotlib.category").setLevel(logging.WARNING)  # choices may be numbers

INK, LINE, FAINT = "#1c2833", "#b0b6bd", "#e5e8eb"
COLORS = {"finished": BLUE, "pruned": "#b6a6cf", "failed": RED, "running": GREEN, "queued": GREY}
COLORS["interrupted"] = "#d68910"
TIMELINE = {
    "tab:blue": TrialState.COMPLETE,
    "tab:red": TrialState.FAIL,
    "tab:orange": TrialState.PRUNED,
    "tab:green": TrialState.RUNNING,
    "tab:gray": TrialState.WAITING,
}
OPACITY = (0.6, 0.6, 1.0)  # of curves, by their height


def draw_page(plot: Plot) -> "plotly.graph_objects.Figure":
    """Draw a plot for a page, as wide as there is room."""
    figure = _draw(plot, optuna.visualization)
    figure.update_layout(
        template="plotly_white",
        title=None,
        autosize=True,
        width=None,
        height=360,
        margin={"l": 60, "r": 20, "t": 30, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        colorway=[BLUE, RED, GREEN, GREY],
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
    )
    figure.for_each_xaxis(lambda axis: _thin_page_ticks(plot, axis))
    figure.for_each_yaxis(lambda axis: _thin_page_ticks(plot, axis))
    if plot.kind == "param_importances":
        figure.update_layout(xaxis_title=None, yaxis_title=None)
    if plot.kind == "pareto_front":
        for trace, name, color in zip(figure.data, ("others", "Pareto-optimal"), (GREY, RED), strict=True):
            trace.update(name=name, marker={"color": color, "showscale": False}, showlegend=True)
    if plot.kind == "intermediate_values":
        longest = max(len(trace.x) for trace in figure.data)
        figure.update_layout(xaxis_title="validation", yaxis_title=plot.target, xaxis_dtick=1 if longest < 10 else None)
        for trace in figure.data:
            color, width, height = _curve_style(plot, trace.name)
            trace.update(mode="lines", line={"color": color, "width": width}, opacity=OPACITY[height])
        figure.data = sorted(figure.data, key=lambda trace: _curve_style(plot, trace.name)[2])
    if plot.kind == "timeline":
        figure.update_layout(xaxis_title=None, yaxis_title="trial")
        for trace in figure.data:
            word = plot.word(TrialState[trace.name])
            trace.update(name=word, marker_color=COLORS[word])
    return figure


def draw_picture(plot: Plot) -> Figure:
    """Draw a plot as a picture, in the style of leyden.figures."""
    from matplotlib import pyplot

    pyplot.switch_backend("agg")  # no window
    size = (2.0 + 1.3 * len(plot.keys or ()) if plot.kind == "parallel_coordinate" else 6.4), 4.0
    size = (4.6, 3.4) if plot.width > 1 else size  # Optuna gives each slice half of this width
    with pyplot.rc_context({"figure.figsize": size, "figure.constrained_layout.use": True}):
        figure = np.ravel(_draw(plot, optuna.visualization.matplotlib))[0].figure
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)  # some have another one
        _style_picture(plot, figure)
    pyplot.close(figure)  # in pyplot's own list
    return figure


def _draw(plot: Plot, module: Any) -> Any:
    options: dict[str, Any] = {} if plot.keys is None else {"params": list(plot.keys)}
    if plot.kind not in ("intermediate_values", "timeline", "pareto_front"):
        options["target_name"] = plot.target
    with without_warnings():
        return getattr(module, f"plot_{plot.kind}")(plot.study, **options)


def _thin_page_ticks(plot: Plot, axis: "plotly.graph_objects.layout.XAxis") -> None:
    """Label powers of ten alone, where a key spans more than one of them."""
    if axis.type == "log":
        trials = plot.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        values = [trial.params[axis.title.text] for trial in trials if axis.title.text in trial.params]
        wide = max(values) > 30 * min(values)
        axis.update(dtick=1 if wide else None, exponentformat="power" if wide else "none")


def _style_picture(plot: Plot, figure: Figure) -> None:
    figure.suptitle("")
    for axis in figure.axes:
        axis.set_title("", loc="left")
        axis.set_title("")
        axis.set_facecolor("white")
        axis.tick_params(labelsize=8, color=LINE, labelcolor=INK)
        axis.spines[:].set_color(LINE)
        axis.grid(visible=False)
        for scale in (axis.xaxis, axis.yaxis):
            scale.label.set(size=9, color=INK, parse_math=False)
            _thin_ticks(scale)
            for tick in scale.get_major_ticks() if scale.get_scale() != "log" else ():  # choices may have a $
                tick.label1.set_parse_math(False)
                tick.label2.set_parse_math(False)
        if axis.get_label() != "<colorbar>" and plot.kind not in ("parallel_coordinate", "contour"):
            axis.grid(color=FAINT, linewidth=0.7)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
    axis = figure.axes[0]
    match plot.kind:
        case "intermediate_values":
            axis.set(xlabel="validation", ylabel=plot.target)
            for line in axis.lines:
                color, width, height = _curve_style(plot, str(line.get_label()))
                line.set(color=color, linewidth=width, marker="", alpha=OPACITY[height], zorder=2 + height)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        case "timeline":
            words = {to_rgba(color): plot.word(state) for color, state in TIMELINE.items()}
            for bar in axis.patches:
                bar.set_color(COLORS[words[to_rgba(bar.get_facecolor())]])
        case "param_importances":
            axis.set(xlabel="share in what makes trials good", ylabel="")
        case "parallel_coordinate":
            for lines in axis.collections:
                lines.set_cmap(_visible(lines.get_cmap()))
    _style_legend(plot, axis)


def _style_legend(plot: Plot, axis: Axes) -> None:
    """Leave a legend where colours need one, above the plot."""
    if legend := axis.get_legend():
        legend.remove()
    handles, labels = axis.get_legend_handles_labels()
    if plot.kind == "timeline":
        words = dict.fromkeys(plot.word(trial.state) for trial in plot.study.get_trials(deepcopy=False))
        handles, labels = [Patch(color=COLORS[word]) for word in words], list(words)
    elif plot.kind == "intermediate_values":
        words = {"best": RED, "finished": BLUE, "pruned": COLORS["pruned"]}
        handles, labels = [Line2D([], [], color=color) for color in words.values()], list(words)
    elif plot.kind not in ("optimization_history", "pareto_front"):
        return
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
    axis.legend(handles, labels, fontsize=8, frameon=False, ncols=len(labels), **place)


def _thin_ticks(scale: Axis) -> None:
    """Label powers of ten alone; within less than two of them, three values."""
    if scale.get_scale() == "log":
        low, high = scale.get_view_interval()
        if high < 100 * low:
            scale.set_major_locator(MaxNLocator(3))
            scale.set_major_formatter(FormatStrFormatter("%.2g"))
        scale.set_minor_formatter(NullFormatter())


def _visible(colors: Colormap) -> Colormap:
    """Leave out the colours that cannot be seen on white."""
    rgba = colors(np.linspace(0, 1, 256))  # (256, 4)
    return ListedColormap(rgba[rgba[:, :3].mean(1) < 0.85])


def _curve_style(plot: Plot, name: str) -> tuple[str, float, int]:
    """Colour, width and height among the others of the curve of `Trial7`."""
    number = int(name.removeprefix("Trial"))
    if number == plot.best:
        return RED, 2.4, 2
    finished = plot.study.get_trials(deepcopy=False)[number].state == TrialState.COMPLETE
    return (BLUE, 1.2, 1) if finished else (COLORS["pruned"], 1.0, 0)
