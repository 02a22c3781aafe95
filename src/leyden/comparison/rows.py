"""Compare groups of runs with the first group, on each task and over all tasks."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from leyden import statistics
from leyden.comparison.groups import Group, Objections, group_by
from leyden.comparison.measures import Sample, measure
from leyden.comparison.metric import Metric
from leyden.statistics import Difference, Summary

ALL_TASKS = "all tasks"
ALPHA = 1 - statistics.LEVEL  # a difference is significant if its p is below this


class Row(NamedTuple):
    """A group's values on a task, and their difference from those of the first group."""

    task: str
    group: int
    label: str
    values: np.ndarray  # (n,), one for each run
    summary: Summary
    difference: Difference | None = None
    holm: float | None = None  # p, adjusted for the number of comparisons
    family_size: int = 1  # the number of comparisons
    size: str = ""  # the number of compared values: `n = 5 seeds`


class MetricComparison(NamedTuple):
    """The comparison of one metric: a row for each task and group."""

    metric: Metric
    rows: list[Row]


def compare_runs(
    groups: Sequence[Group], names: Sequence[tuple[str, bool | None]], objections: Objections
) -> list[MetricComparison]:
    """Compare each metric on each task, and over all tasks if its values mean the same on all of them.

    Raises:
        UserError: if `leyden.comparison.measures.measure` refuses the groups.
    """
    comparisons = []
    for name, higher in names:
        metric, tasks = measure(groups, name, higher, objections)
        rows = [row for task, samples in tasks.items() for row in _compare_on_task(task, groups, samples, objections)]
        if metric.share:
            rows = [row._replace(summary=_within_shares(row.summary)) for row in rows]
        if len(tasks) > 1 and metric.comparable:
            rows += _compare_over_tasks(groups, list(tasks.values()), rows)
            min_p = statistics.smallest_p_over_tasks(len(tasks)) * (len(groups) - 1)
            if len(groups) > 1 and min_p >= ALPHA:
                objections.note(f"no difference over {len(tasks)} tasks can be shown: p is never below {min_p:.2g}")
        elif len(tasks) > 1:
            objections.note(f"{name} does not have the same unit on every task, so there is no mean over tasks")
        comparisons.append(MetricComparison(metric, rows))
    return adjust(comparisons)


def _compare_on_task(
    task: str, groups: Sequence[Group], samples: Sequence[Sample], objections: Objections
) -> Iterator[Row]:
    """Compare the groups on one task, in pairs if most seeds or folds are the same in both."""
    baseline, *_ = all_values = [sample.values_by_key() for sample in samples]
    for number, (group, sample, values_by_key) in enumerate(zip(groups, samples, all_values, strict=True)):
        values = np.array(list(values_by_key.values()))
        row = Row(task, number, group.label, sample.values, statistics.summarize(values, sample.overlap))
        if number == 0:
            yield row
            continue
        common_keys = [key for key in baseline if key in values_by_key]
        if 2 * len(common_keys) > max(len(baseline), len(values_by_key)):
            first, second = (np.array([v[key] for key in common_keys]) for v in (baseline, values_by_key))
            difference = statistics.paired(first, second, (samples[0].overlap + sample.overlap) / 2)
            size = _size_text(sample, len(common_keys))
            if num_left_out := len(baseline) + len(values_by_key) - 2 * len(common_keys):
                objections.note(
                    f"{group.label} minus {groups[0].label} is over the {size} that both have, {num_left_out} left out"
                )
        else:
            difference = statistics.unpaired(
                np.array(list(baseline.values())), values, samples[0].overlap, sample.overlap
            )
            size = f"{_size_text(samples[0], len(baseline))} and {_size_text(sample, len(values_by_key))}"
        yield row._replace(difference=difference, size=f"n = {size}")


def _within_shares(summary: Summary) -> Summary:
    """Cut off the part of an interval that is below 0 or above 1, where only intervals by Student's t can reach."""
    return summary._replace(interval=summary.interval and summary.interval.within(0, 1))


def _compare_over_tasks(
    groups: Sequence[Group], tasks: Sequence[Sequence[Sample]], rows: Sequence[Row]
) -> Iterator[Row]:
    """Yield each group's interquartile mean over all tasks, and Wilcoxon's test of its differences in `rows`."""
    for number, group in enumerate(groups):
        runs = [samples[number].values for samples in tasks]
        summary = statistics.interquartile_mean(runs)
        if any(samples[number].has_folds for samples in tasks):
            summary = summary._replace(bootstrap=None)  # folds are not independent samples
        differences = np.array([row.difference.value for row in rows if row.group == number and row.difference])
        difference = statistics.wilcoxon_over_tasks(differences) if number else None
        yield Row(
            ALL_TASKS, number, group.label, np.concatenate(runs), summary, difference, size=f"n = {len(tasks)} tasks"
        )


def adjust(comparisons: list[MetricComparison]) -> list[MetricComparison]:
    """Add Holm's p over all comparisons on a split; the comparisons over all tasks are a separate family."""
    tested_rows = [
        (row, row.difference.p, (comparison.metric.name.partition("/")[0], row.task == ALL_TASKS))
        for comparison in comparisons
        for row in comparison.rows
        if row.difference and row.difference.p is not None
    ]
    adjusted_rows: dict[int, Row] = {}
    for family in group_by(tested_rows, lambda item: item[2]).values():
        for (row, *_), p in zip(family, statistics.holm([p for _, p, _ in family]), strict=True):
            adjusted_rows[id(row)] = row._replace(holm=p, family_size=len(family))
    return [c._replace(rows=[adjusted_rows.get(id(row), row) for row in c.rows]) for c in comparisons]


def _size_text(sample: Sample, n: int) -> str:
    """Return a number with its noun: seeds, runs or folds."""
    if not sample.has_folds:
        return _count(n, "seed" if len({member.seed for member in sample.members}) == len(sample.values) else "run")
    seeds_per_fold = sorted(set(Counter(member.fold for member in sample.members).values()))
    if seeds_per_fold == [1]:
        return _count(n, "fold")
    max_seeds = _count(seeds_per_fold[-1], "seed")
    return f"{_count(n, 'fold')} of {max_seeds if len(seeds_per_fold) == 1 else f'{seeds_per_fold[0]} to {max_seeds}'}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
