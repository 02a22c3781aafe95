"""A comparison as tables and as sentences."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from leyden import statistics
from leyden.comparison.rows import ALL_TASKS, ALPHA, MetricComparison, Row
from leyden.statistics import Difference, Interval


class Grid(NamedTuple):
    """A table of texts: the first `num_names` columns are names, the others numbers."""

    title: str
    num_names: int
    header: list[str]
    rows: list[list[str]]


class Report(NamedTuple):
    """A comparison's tables, sentences and notes, before they are printed or written."""

    grids: list[Grid]
    sentences: list[str]
    notes: list[str]


def report(comparisons: Sequence[MetricComparison], notes: Sequence[str]) -> Report:
    """Return a comparison as tables and sentences."""
    grids = [grid for comparison in comparisons for grid in _grids(comparison)]
    sentences = [sentence for comparison in comparisons for sentence in _sentences(comparison)]
    return Report(grids, sentences, list(notes))


class _Formatter:
    """Formats a metric's numbers, all with the decimals that show two digits of the typical spread."""

    def __init__(self, comparison: MetricComparison) -> None:
        self.metric = comparison.metric
        self.factor = comparison.metric.factor
        self.unit = " points" if comparison.metric.share else ""
        stds = [row.summary.std for row in comparison.rows]
        half_widths = [_half_width(d.interval or d.bootstrap) for d in (row.difference for row in comparison.rows) if d]
        typical_sizes = [
            float(np.median(nonzero_sizes))
            for sizes in (stds, half_widths)
            if (nonzero_sizes := [size for size in sizes if size])
        ]
        size = self.factor * min(typical_sizes, default=abs(comparison.rows[0].summary.mean) / 100)
        self.format = f".{max(0, 1 - math.floor(math.log10(size)))}f" if size else ".2f"
        if not 1e-6 < (abs(self.factor * comparison.rows[0].summary.mean) or 1) < 1e7:
            self.format = ".3g"

    def number(self, value: float | None, sign: bool = False) -> str:
        """Format a value; None becomes an empty text."""
        return "" if value is None else f"{self.factor * value:{'+' if sign else ''}{self.format}}"

    def interval(self, interval: Interval | None, sign: bool = False) -> str:
        """Format an interval's ends."""
        return f"{self.number(interval.low, sign)} … {self.number(interval.high, sign)}" if interval else ""

    def difference(self, difference: Difference | None, sign: bool = True) -> str:
        """Format a difference, with ± half the width of its interval if that is symmetric, as t intervals are."""
        if difference is None:
            return ""
        value = difference.value if sign else abs(difference.value)
        half_width = _half_width(difference.interval) if difference.error is not None else None
        return self.number(value, sign) + (f" ± {self.number(half_width)}" if half_width is not None else "")

    def level(self, difference: Difference) -> str:
        """Format the confidence level of a difference's interval, and its ends unless `difference` shows them as ±."""
        if difference.error is not None:
            return " (95 %)"
        interval = difference.interval or difference.bootstrap
        return f" (95 %, {self.interval(interval, sign=True)})" if interval else ""


def _grids(comparison: MetricComparison) -> Iterator[Grid]:
    """Yield a table of the groups, and a table of their differences from the first group."""
    formatter, (name, higher, share) = _Formatter(comparison), comparison.metric
    groups, differences, tests = [], [], set()
    for row in comparison.rows:
        names, summary = {"task": row.task, "group": row.label}, row.summary
        # IQM, the interquartile mean, is the mean of the middle half of the runs
        task_label = {"task": f"{ALL_TASKS} (IQM)"} if row.task == ALL_TASKS else {}
        means = {"n": str(summary.n), "mean": formatter.number(summary.mean), "std": formatter.number(summary.std)}
        intervals = {
            "95 % by t": formatter.interval(summary.interval),
            "by bootstrap": formatter.interval(summary.bootstrap),
        }
        groups.append(names | task_label | means | intervals)
        if d := row.difference:
            value = {
                f"minus {comparison.rows[0].label}": formatter.difference(d),
                "95 %": formatter.interval(d.interval, sign=True) if d.error is None else "",
                "95 % by bootstrap": formatter.interval(d.bootstrap, sign=True),
                "test": d.test if d.p is not None else "",
            }
            holm = _format_p(row.holm) if row.family_size > 1 else ""
            p_values = {"p": _format_p(d.p), "Holm": holm, "Wilcoxon": _format_p(d.wilcoxon)}
            g = "" if d.effect is None else f"{d.effect:+.2f}"
            effect = {"g": "" if d.pairs else g, "g of pairs": g if d.pairs else ""}
            differences.append(names | value | p_values | effect)
            tests |= {value["test"]} - {""}
    yield _grid(f"{name}{', %' if share else ''} ({'higher' if higher else 'lower'} is better)", groups)
    if differences:
        test = f", {tests.pop()}" if len(tests) == 1 else ""
        differences = [{k: v for k, v in row.items() if not test or k != "test"} for row in differences]
        yield _grid(f"{name}: differences{' in points' if share else ''}{test}", differences)


def _grid(title: str, rows: list[dict[str, str]]) -> Grid:
    """Build a table without empty columns."""
    header = [name for name in rows[0] if any(row[name] for row in rows)]
    return Grid(title, len({"task", "group"} & set(header)), header, [[row[name] for name in header] for row in rows])


def _sentences(comparison: MetricComparison) -> Iterator[str]:
    """Yield a sentence for each group: whether it is better than the first, by how much, and how certain that is."""
    formatter, name = _Formatter(comparison), comparison.metric.name
    has_tasks = len({row.task for row in comparison.rows}) > 1
    for row in comparison.rows:
        if row.difference and (not has_tasks or row.task == ALL_TASKS):
            yield _sentence(row, row.difference, comparison, formatter)
        elif row.summary.n == 1 and len(comparison.rows) == 1:
            yield f"{row.label} is one run: nothing can be said about the spread of {name}"
    if has_tasks:
        yield from _tally(comparison)


def _sentence(row: Row, difference: Difference, comparison: MetricComparison, formatter: _Formatter) -> str:
    (_, _, a, *_), name, b = comparison.rows[0], comparison.metric.name, row.label
    difference_text = f"{b} minus {a} is {formatter.difference(difference)}{formatter.unit}"
    if difference.p is None:
        is_single = any(r.summary.n == 1 for r in comparison.rows if r.task == row.task and r.group in (0, row.group))
        reason = "but one value says nothing about spread" if is_single else "and does not vary"
        return f"{difference_text} of {name}, {reason}: nothing can be tested ({row.size})"
    holm = f"; {_format_p(row.holm)} by Holm, of {row.family_size}" if row.family_size > 1 else ""
    equals = "" if difference.p < 0.001 else "= "
    test = f"p {equals}{_format_p(difference.p)} ({difference.test}, {row.size}{holm})"
    level = formatter.level(difference)
    if row.holm is not None and row.holm < ALPHA:
        better = "better" if (difference.value > 0) == comparison.metric.higher else "worse"
        size = f"{formatter.difference(difference, sign=False)}{formatter.unit}"
        return f"{b} is {better} than {a} by {size} of {name}{level}, {test}"
    text = f"no difference of {name} can be shown: {difference_text}{level}, {test}"
    if smallest_difference := statistics.detectable(difference, row.family_size):
        size = f"{formatter.number(smallest_difference)}{formatter.unit}"
        text += f"; the smallest that groups of this size could show is about {size}"
    return text


def _tally(comparison: MetricComparison) -> Iterator[str]:
    """Count the tasks on which each group is better."""
    for number in dict.fromkeys(row.group for row in comparison.rows if row.difference):
        rows = [row for row in comparison.rows if row.group == number and row.task != ALL_TASKS]
        direction = 1 if comparison.metric.higher else -1
        values = [direction * row.difference.value if row.difference else 0 for row in rows]
        is_shown = [row.holm is not None and row.holm < ALPHA for row in rows]
        better, worse = ([s for v, s in zip(values, is_shown, strict=True) if sign * v > 0] for sign in (1, -1))
        yield (
            f"{rows[0].label} is better than {comparison.rows[0].label} in {comparison.metric.name} on {len(better)} "
            f"of {len(rows)} tasks, shown on {sum(better)}; worse on {len(worse)}, shown on {sum(worse)}"
        )


def _half_width(interval: Interval | None) -> float | None:
    return (interval.high - interval.low) / 2 if interval else None


def _format_p(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"
