"""A comparison as a picture: the groups' runs, means and intervals, their differences, and performance profiles."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leyden import statistics
from leyden.comparison.metric import Metric
from leyden.comparison.report import Report
from leyden.comparison.rows import ALL_TASKS, MetricComparison, Row
from leyden.figures.plots import BLUE, GREEN, GREY, RED, style_axis
from leyden.statistics import Interval

NUM_THRESHOLDS = 201  # points of a performance profile
COLORS = (GREY, BLUE, RED, GREEN, "#8e44ad", "#d68910", "#148f77", "#5d6d7e")  # one per group, the baseline's first


def draw(comparison: Sequence[MetricComparison], report: Report, path: Path) -> None:
    """Draw each metric's means and differences on separate axes, then profiles over many tasks, then notes."""
    parts: list[tuple[Callable[[Axes, Metric, list[Row]], None], MetricComparison]] = []
    for item in comparison:
        parts.append((_draw_means, item))
        if any(row.difference for row in item.rows):
            parts.append((_draw_differences, item))
    profiled_items = [item for item in comparison if any(row.task == ALL_TASKS for row in item.rows)]
    parts += [(_draw_profiles, item) for item in profiled_items]
    notes = [line for note in ("bars: 95 % intervals", *report.notes) for line in textwrap.wrap(note, 80 * len(parts))]
    max_rows = max(len(item.rows) for item in comparison)
    height = max(0.9 + 0.34 * max_rows, 2.6 if profiled_items else 0) + 0.15 * len(notes)
    figure = Figure(figsize=(4.6 * len(parts), height), dpi=150, layout="constrained")
    figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=7, color="#5d6d7e", parse_math=False)
    axes = figure.subplots(1, len(parts), squeeze=False).ravel()
    for axis, (draw_part, (metric, rows)) in zip(axes, parts, strict=True):
        draw_part(axis, metric, rows)
    figure.savefig(path)


def _draw_means(axis: Axes, metric: Metric, rows: list[Row]) -> None:
    """Draw each group's runs, mean and interval, one line per group, the first on top."""
    for line, row in enumerate(rows):
        if row.task != ALL_TASKS and len(row.values) > 1:
            values = metric.factor * row.values
            axis.plot(values, np.full(len(values), line), "|", color=_color(row), alpha=0.5, markersize=9)
        interval = row.summary.interval or row.summary.bootstrap
        _draw_interval(axis, line, row, row.summary.mean, interval, metric.factor)
    _label_lines(axis, rows, f"{metric.name}{_unit(metric)}")


def _draw_differences(axis: Axes, metric: Metric, rows: list[Row]) -> None:
    """Draw each group's difference from the first group, and its interval, one line per group."""
    other_rows = [row for row in rows if row.difference]
    for line, row in enumerate(other_rows):
        if d := row.difference:
            _draw_interval(axis, line, row, d.value, d.interval or d.bootstrap, metric.factor)
    _label_lines(axis, other_rows, f"{metric.name} minus {rows[0].label}{' (points)' if metric.share else ''}")
    axis.axvline(0, color=GREY, linewidth=0.9, zorder=0)


def _draw_interval(axis: Axes, line: int, row: Row, center: float, interval: Interval | None, factor: float) -> None:
    if interval:
        axis.hlines(line, factor * interval.low, factor * interval.high, color=_color(row), linewidth=1.8)
    axis.plot(factor * center, line, "o", color=_color(row), markersize=5)


def _label_lines(axis: Axes, rows: Sequence[Row], title: str) -> None:
    labels = [f"{row.task}: {row.label}" if row.task else row.label for row in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=8, parse_math=False)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    style_axis(axis)
    axis.grid(visible=False, axis="y")
    axis.set_title(title, fontsize=10, loc="left", parse_math=False)


def _draw_profiles(axis: Axes, metric: Metric, rows: list[Row]) -> None:
    """Draw, for each group, the share of runs that are better than each threshold, with its interval."""
    values = np.concatenate([row.values for row in rows])
    thresholds = np.linspace(values.min(), values.max(), NUM_THRESHOLDS)
    for group in dict.fromkeys(row.group for row in rows):
        tasks = [row for row in rows if row.group == group and row.task != ALL_TASKS]
        first = tasks[0]
        share, low, high = statistics.profile([row.values for row in tasks], thresholds, metric.higher)
        # matplotlib leaves labels that begin with _ out of a legend
        label = f" {first.label}" if first.label.startswith("_") else first.label
        axis.plot(metric.factor * thresholds, share, color=_color(first), linewidth=1.6, label=label)
        axis.fill_between(metric.factor * thresholds, low, high, color=_color(first), alpha=0.15, linewidth=0)
    style_axis(axis)
    title = f"runs {'above' if metric.higher else 'below'} {metric.name}{_unit(metric)}"
    axis.set_title(title, fontsize=10, loc="left", parse_math=False)
    axis.set_ylabel("share of runs", fontsize=9)
    for text in axis.legend(fontsize=8, frameon=False).get_texts():
        text.set_parse_math(False)


def _color(row: Row) -> str:
    return COLORS[row.group % len(COLORS)]


def _unit(metric: Metric) -> str:
    return " (%)" if metric.share else ""
