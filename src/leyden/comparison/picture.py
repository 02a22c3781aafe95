"""A comparison as a picture, by matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from leyden import statistics
from leyden.comparison.report import Report
from leyden.comparison.rows import ALL, Compared
from leyden.figures import spreads

NUM_THRESHOLDS = 201  # points of a performance profile


def draw(comparison: Sequence[Compared], report: Report, path: Path) -> None:
    """Draw every group's runs, mean and interval, the differences, and over many tasks the performance profiles."""
    panels, profiles = [], {}
    for metric, rows in comparison:
        factor, unit = (100, " (%)") if metric.share else (1, "")
        means, differences = [], []
        for row in rows:
            summary, label = row.summary, f"{row.task}: {row.label}" if row.task else row.label
            values = factor * row.values if row.task != ALL else np.empty(0)
            interval = _scaled(summary.interval or summary.bootstrap, factor)
            means.append(spreads.Spread(row.group, label, values, factor * summary.mean, interval))
            if d := row.difference:
                interval = _scaled(d.interval or d.bootstrap, factor)
                differences.append(spreads.Spread(row.group, label, np.empty(0), factor * d.value, interval))
        panels.append(spreads.Panel(metric.name + unit, means))
        if differences:
            points = " (points)" if metric.share else ""
            panels.append(spreads.Panel(f"{metric.name} minus {rows[0].label}{points}", differences, zero=True))
        if any(row.task == ALL for row in rows):
            values = np.concatenate([row.values for row in rows])
            thresholds = np.linspace(values.min(), values.max(), NUM_THRESHOLDS)
            lines = []
            for group in dict.fromkeys(row.group for row in rows):
                task_rows = [row for row in rows if row.group == group and row.task != ALL]
                shares = statistics.profile([row.values for row in task_rows], thresholds, metric.higher)
                lines.append((task_rows[0].label, factor * thresholds, shares))
            profiles[f"runs {'above' if metric.higher else 'below'} {metric.name}{unit}"] = lines
    spreads.comparison(panels, profiles, ["bars: 95 % intervals", *report.notes]).savefig(path)


def _scaled(interval: tuple[float, float] | None, factor: float) -> tuple[float, float] | None:
    return (factor * interval[0], factor * interval[1]) if interval else None
