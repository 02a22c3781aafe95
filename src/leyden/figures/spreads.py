"""Figures that compare groups of runs: their values, means and intervals, and performance profiles."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from leyden.figures.plots import BLUE, GREEN, GREY, RED, style_axis

GROUPS = (GREY, BLUE, RED, GREEN, "#8e44ad", "#d68910", "#148f77", "#5d6d7e")  # colours of groups, the baseline's first


class Spread(NamedTuple):
    """The results of a group: the values of its runs (n,), their mean, and the interval of the mean if there is one."""

    group: int
    label: str
    values: np.ndarray
    mean: float
    interval: tuple[float, float] | None


class Panel(NamedTuple):
    """An axis of spreads, one below the other; `zero` draws a line at 0, for differences."""

    title: str
    spreads: Sequence[Spread]
    zero: bool = False


def comparison(
    panels: Sequence[Panel],
    profiles: Mapping[str, Sequence[tuple[str, np.ndarray, np.ndarray]]],
    notes: Sequence[str],
) -> Figure:
    """Draw the runs, means and intervals of groups, and performance profiles; write notes below.

    A profile is the label of a group, thresholds (P,), and the share of its runs that are better, with the ends of the
    share's interval, (3, P).
    """
    longest = max(len(panel.spreads) for panel in panels)
    columns = len(panels) + len(profiles)
    lines = [line for note in notes for line in textwrap.wrap(note, 80 * columns)]
    height = max(0.9 + 0.34 * longest, 2.6 if profiles else 0) + 0.15 * len(lines)
    figure = Figure(figsize=(4.6 * columns, height), dpi=150, layout="constrained")
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color="#5d6d7e", parse_math=False)
    axes = figure.subplots(1, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_spreads(axis, panel.spreads)
        axis.set_title(panel.title, fontsize=10, loc="left", parse_math=False)
        if panel.zero:
            axis.axvline(0, color=GREY, linewidth=0.9, zorder=0)
    for axis, (title, lines) in zip(axes[len(panels) :], profiles.items(), strict=True):
        for color, (label, thresholds, (share, low, high)) in zip(cycle(GROUPS), lines, strict=False):
            visible = f" {label}" if label.startswith("_") else label  # a legend leaves out names that begin with _
            axis.plot(thresholds, share, color=color, linewidth=1.6, label=visible)
            axis.fill_between(thresholds, low, high, color=color, alpha=0.15, linewidth=0)
        style_axis(axis)
        axis.set_title(title, fontsize=10, loc="left", parse_math=False)
        axis.set_ylabel("share of runs", fontsize=9)
        for text in axis.legend(fontsize=8, frameon=False).get_texts():
            text.set_parse_math(False)
    return figure


def _draw_spreads(axis: Axes, spreads: Sequence[Spread]) -> None:
    """Draw each spread in a row, the first on top."""
    for row, spread in enumerate(spreads):
        color = GROUPS[spread.group % len(GROUPS)]
        if len(spread.values) > 1:
            axis.plot(spread.values, np.full(len(spread.values), row), "|", color=color, alpha=0.5, markersize=9)
        if spread.interval:
            axis.hlines(row, *spread.interval, color=color, linewidth=1.8)
        axis.plot(spread.mean, row, "o", color=color, markersize=5)
    axis.set_yticks(range(len(spreads)), [spread.label for spread in spreads], fontsize=8, parse_math=False)
    axis.set_ylim(len(spreads) - 0.4, -0.6)
    style_axis(axis)
    axis.grid(visible=False, axis="y")
