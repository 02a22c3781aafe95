"""Figures of a run, drawn with matplotlib's object interface, which needs no window and has no global state."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

GREY, BLUE, RED, GREEN = "#7f8791", "#0072b2", "#c0392b", "#1e8449"
STAGE_LINES: dict[str, dict[str, Any]] = {
    "train": {"color": GREY, "linewidth": 1.0, "zorder": 2},
    "val": {"color": BLUE, "linewidth": 1.6, "marker": "o", "markersize": 3, "zorder": 3},
    "test": {"color": RED, "linestyle": "none", "marker": "D", "markersize": 6, "zorder": 4},
}


def style_axis(axis: Axes) -> None:
    """Give an axis the style of all figures: small grey ticks, a faint grid, and no frame."""
    axis.tick_params(labelsize=8, color="#b0b6bd")
    axis.grid(color="#e5e8eb", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#b0b6bd")


def finish_layout(figure: Figure) -> Figure:
    """Compute the layout once; otherwise matplotlib would compute it, and draw the figure twice, at each save."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine()
    return figure


def attention_map(weight: np.ndarray, source: Sequence[str], target: Sequence[str]) -> Figure:
    """Draw the attention `weight` (T, S), 0 to 1, of each target word (row) to each source word (column)."""
    figure = Figure(figsize=(1.6 + 0.34 * len(source), 1.2 + 0.27 * len(target)), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.imshow(weight, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
    axis.set_xticks(range(len(source)), source, rotation=60, ha="left", rotation_mode="anchor", fontsize=9)
    axis.set_yticks(range(len(target)), target, fontsize=9)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


FORECAST_LINES: dict[str, dict[str, Any]] = {
    "persistence": {"color": GREY, "linewidth": 0.8, "linestyle": ":"},
    "seasonal": {"color": RED, "linewidth": 0.8, "linestyle": "--"},
    "truth": {"color": "#1c2833", "linewidth": 1.2},
    "forecast": {"color": BLUE, "linewidth": 1.5},
}
MAX_NUMBERED_CLASSES = 25  # a larger confusion matrix has no room for its numbers


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw how often each true class (row) was predicted as each class (column).

    `counts` is (K, K) integers, shown for up to 25 classes. The colour is the share of the row, on a square-root
    scale, so that rare mistakes are visible.
    """
    num_classes = len(classes)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)  # (K, K)
    has_numbers = num_classes <= MAX_NUMBERED_CLASSES
    side = min(14.0, max(4.5, 2.0 + 0.52 * num_classes))
    figure = Figure(figsize=(side + (0 if has_numbers else 1.2), side), dpi=150, layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    if has_numbers:
        size = 8 if counts.max() < 10_000 else 6
        for row, column in np.argwhere(counts > 0):
            ink = "white" if share[row, column] > 0.35 else "#1c2833"
            axis.text(column, row, f"{counts[row, column]:d}", ha="center", va="center", color=ink, fontsize=size)
    step = math.ceil(num_classes / 50)  # more names would overlap
    ticks = range(0, num_classes, step)
    names = [classes[k] for k in ticks]
    font_size = 9 if has_numbers else 5
    is_upright = max(map(len, names)) <= 2
    rotation: dict[str, Any] = {"rotation": 0, "ha": "center"} if is_upright else {"rotation": 45, "ha": "right"}
    axis.set_xticks(ticks, names, rotation_mode="anchor", fontsize=font_size, **rotation)
    axis.set_yticks(ticks, names, fontsize=font_size)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    total = int(counts.sum())
    num_correct = int(np.trace(counts))
    axis.set_title(f"{num_correct:,} of {total:,} correct ({100 * num_correct / max(total, 1):.2f} %)", fontsize=11)
    axis.spines[:].set_visible(False)
    if not has_numbers:
        bar = figure.colorbar(picture, ax=axis, shrink=0.6, aspect=25, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
        bar.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"], fontsize=8)
        bar.set_label("share of the true class", fontsize=9)
        bar.outline.set_visible(False)
    return figure


def class_histogram(samples: np.ndarray, real: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw the share (K,) of each class among the samples as bars, and among real examples as marks on them."""
    num_classes = len(classes)
    figure = Figure(figsize=(min(14.0, max(5.0, 1.5 + 0.45 * num_classes)), 3.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    positions = np.arange(num_classes)
    bars = axis.bar(positions, 100 * samples, width=0.72, color=BLUE, alpha=0.75)
    marks = axis.hlines(100 * real, positions - 0.45, positions + 0.45, color="#1c2833", linewidth=1.6)
    style_axis(axis)
    axis.grid(visible=False, axis="x")
    step = math.ceil(num_classes / 50)  # more names would overlap
    names = [str(name) for name in classes[::step]]
    is_upright = max(map(len, names)) <= 4
    rotation: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(positions[::step], names, fontsize=8, **({} if is_upright else rotation))
    axis.tick_params(axis="x", length=0)
    axis.set_xlim(-0.7, num_classes - 0.3)
    axis.set_ylim(0, 105 * max(samples.max(), real.max()))
    axis.set_ylabel("share (%)", fontsize=9)
    legend_position: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
    axis.legend([bars, marks], ["samples", "real"], fontsize=8, frameon=False, ncols=2, **legend_position)
    return figure


def curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the logged scalars: one axis for each metric, with the lines of `train`, `val` and `test`.

    `rows` are the rows of the run's metrics, one for each time that something was logged; metrics that were not logged
    then are absent, None, or empty. Apart from `step`, keys without a stage are ignored.
    """
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}  # metric -> stage -> points
    for row in rows:
        for key, value in row.items():
            stage, slash, name = key.partition("/")
            if slash and stage in STAGE_LINES and value not in (None, ""):
                series.setdefault(name, {}).setdefault(stage, []).append((float(row["step"]), float(value)))
    columns = min(3, max(1, len(series)))
    height = math.ceil(len(series) / columns) or 1
    figure = Figure(figsize=(4.4 * columns, 3.0 * height), dpi=150, layout="constrained")
    axes = figure.subplots(height, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, stages) in zip(axes, series.items(), strict=False):
        axis.set_axis_on()
        for stage, points in stages.items():
            axis.plot(*zip(*points, strict=True), label=stage, **STAGE_LINES[stage])
        axis.set_title(name, fontsize=11, loc="left", parse_math=False)
        axis.set_xlabel("step", fontsize=9)
        style_axis(axis)
        axis.legend(fontsize=8, frameon=False)
    return figure


def forecasts(windows: Sequence[tuple[str, Mapping[str, np.ndarray]]], series: Sequence[str]) -> Figure:
    """Draw forecasts, the past and the true values, with a column for each window and a row for each series.

    A window is its title and `past` (P, K), `truth`, `forecast`, `persistence` and `seasonal` (H, K each). The figure
    shows the last two horizons of the past and the first eight series; NaN values leave gaps.
    """
    series = series[:8]
    figure = Figure(figsize=(4.2 * len(windows), 0.6 + 2.1 * len(series)), dpi=120, layout="constrained")
    axes = figure.subplots(len(series), len(windows), squeeze=False, sharex=True, sharey="row")
    for column, (title, values) in enumerate(windows):
        horizon = len(values["truth"])
        past = values["past"][-2 * horizon :]
        steps = np.arange(horizon) + 1
        for k, axis in enumerate(axes[:, column]):
            axis.plot(np.arange(1 - len(past), 1), past[:, k], color=GREY, linewidth=0.9)
            for name, style in FORECAST_LINES.items():
                axis.plot(steps, values[name][:, k], label=name, **style)
            style_axis(axis)
        axes[0, column].set_title(title, fontsize=10)
        axes[-1, column].set_xlabel("step", fontsize=9)
    for name, axis in zip(series, axes[:, 0], strict=True):
        axis.set_ylabel(name, fontsize=9)
    axes[0, 0].legend(fontsize=7, frameon=False, loc="upper left")
    return figure


def lr_range(rates: np.ndarray, losses: np.ndarray, smoothed_losses: np.ndarray, suggestion: float | None) -> Figure:
    """Draw a learning-rate range test: losses (N,) and smoothed losses (N,) over rates (N,), and the suggested rate."""
    figure, axis = _search_axis("learning rate", "training loss")
    axis.plot(rates, losses, color=GREY, linewidth=0.8, label="loss")
    axis.plot(rates, smoothed_losses, color=BLUE, linewidth=1.8, label="smoothed")
    if suggestion:
        axis.axvline(suggestion, color=RED, linewidth=1.2, linestyle="--", label=f"suggested: {suggestion:g}")
    start, lowest = smoothed_losses[0], smoothed_losses.min()
    margin = max(start - lowest, 0.1 * abs(start)) / 4
    axis.set_ylim(min(lowest, losses.min()) - margin / 2, start + 2 * margin)  # leaves out the final divergence
    axis.set_xscale("log")
    axis.legend(fontsize=8, frameon=False)
    return figure


def batch_sizes(sizes: Sequence[int], speeds: Sequence[float], suggestion: int) -> Figure:
    """Draw the throughput (samples/s) of each batch size, and the suggested size."""
    figure, axis = _search_axis("batch size", "samples/s")
    axis.plot(sizes, speeds, color=BLUE, linewidth=1.6, marker="o", markersize=4)
    axis.axvline(suggestion, color=RED, linewidth=1.2, linestyle="--", label=f"suggested: {suggestion}")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes], rotation=45, ha="right", rotation_mode="anchor")
    axis.set_ylim(0)
    axis.legend(fontsize=8, frameon=False)
    return figure


def _search_axis(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return a figure with one axis, for a plot of `leyden find`."""
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.set_xlabel(xlabel, fontsize=9)
    axis.set_ylabel(ylabel, fontsize=9)
    style_axis(axis)
    return figure, axis
