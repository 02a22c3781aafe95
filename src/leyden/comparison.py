"""Groups of runs, or two models' answers, held against the first of them: tables, and what they mean in words."""

import math
import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from leyden import statistics
from leyden.errors import UserError
from leyden.groups import Doubts, Group, Metric, Sample, measure
from leyden.statistics import Difference, Interval, Summary

ALL = "all tasks (IQM)"  # the mean of the middle half of the runs
SHOWN = 1 - statistics.LEVEL  # of p, below which a difference is shown


class Row(NamedTuple):
    """A group on a task, and what is known of its difference from the first group."""

    task: str
    group: int
    label: str
    values: np.ndarray  # of the runs (n,)
    summary: Summary
    difference: Difference | None = None
    holm: float | None = None  # p, adjusted for the number of comparisons
    family: int = 1  # that number
    size: str = ""  # what was compared, as `n = 5 seeds`


class Compared(NamedTuple):
    """All that was found of a metric: a row for each task and group."""

    metric: Metric
    rows: list[Row]


class Grid(NamedTuple):
    """A table of texts, the first columns names, the others numbers."""

    title: str
    names: int
    header: list[str]
    rows: list[list[str]]


class Report(NamedTuple):
    """What a comparison says, however it is shown."""

    grids: list[Grid]
    words: list[str]
    notes: list[str]


def compare_runs(groups: Sequence[Group], names: Sequence[tuple[str, bool | None]], doubts: Doubts) -> list[Compared]:
    """Compare each metric on each task and, where it means the same on all of them, over all.

    Raises:
        UserError: for what `leyden.groups.measure` refuses.
    """
    found = []
    for name, higher in names:
        metric, tasks = measure(groups, name, higher, doubts)
        rows = [row for task, samples in tasks.items() for row in _rows(task, groups, samples, doubts)]
        if len(tasks) > 1 and metric.comparable:
            rows += _rows_over_tasks(groups, list(tasks.values()), rows)
            least = statistics.least_over_tasks(len(tasks)) * (len(groups) - 1)
            if len(groups) > 1 and least >= SHOWN:
                doubts.note(f"no difference over {len(tasks)} tasks can be shown: p is never below {_p(least)}")
        elif len(tasks) > 1:
            doubts.note(f"{name} is not the same unit on every task, so there is no mean over tasks")
        found.append(Compared(metric, rows))
    return _adjusted(found)


def compare_samples(groups: Sequence[Group], doubts: Doubts) -> list[Compared]:
    """Compare the answers of single models to the same samples, as `leyden evaluate --save-predictions` kept them.

    Raises:
        UserError: for a group of several runs, one whose predictions are not saved, and other samples than the first's.
    """
    first = _answers(groups[0], None, doubts)
    answers = [first, *(_answers(group, first.split, doubts) for group in groups[1:])]
    for own in answers[1:]:
        if (own.split, own.classes) != (first.split, first.classes) or not _equal(own.target, first.target):
            raise UserError(f"{first.label} and {own.label} have answered other samples; evaluate both on one split")
        if own.sha256 != first.sha256:
            doubts.object(f"{first.label} and {own.label} have answered other samples, if with the same targets")
    size = f"n = {len(first.score)} samples"
    if first.block > 1:
        size = f"n = {len(first.score) // first.block} blocks of samples"
        doubts.note(f"samples overlap: each {first.block} in a row count as one")
    doubts.note("this is about these trained models: whether another seed would agree, runs of several seeds tell")
    rows = []
    for number, own in enumerate(answers):
        difference = None
        if number and first.classes:
            difference = statistics.same_answers(first.score, own.score)
        elif number:
            difference = statistics.same_samples(first.score, own.score, first.block)
        summary = Summary(len(own.score), float(own.score.mean()))
        rows.append(Row("", number, own.label, np.empty(0), summary, difference, size=size))
    name = f"{first.split}/{'accuracy' if first.classes else 'mse'}"
    return _adjusted([Compared(Metric(name, higher=first.classes, share=first.classes), rows)])


def report(compared: Sequence[Compared], notes: Sequence[str]) -> Report:
    """Write what was found as tables and sentences."""
    grids = [grid for found in compared for grid in _grids(found)]
    return Report(grids, [text for found in compared for text in _words(found)], list(notes))


def _rows(task: str, groups: Sequence[Group], samples: Sequence[Sample], doubts: Doubts) -> Iterator[Row]:
    """Compare on one task: as pairs where most of the seeds, or of the folds, are the same."""
    base, *_ = points = [sample.points() for sample in samples]
    for number, (group, sample, own) in enumerate(zip(groups, samples, points, strict=True)):
        values = np.array(list(own.values()))
        row = Row(task, number, group.label, sample.values, statistics.summarize(values, sample.overlap))
        if number == 0:
            yield row
            continue
        common = [key for key in base if key in own]
        if 2 * len(common) > max(len(base), len(own)):
            first, second = (np.array([measured[key] for key in common]) for measured in (base, own))
            difference = statistics.paired(first, second, (samples[0].overlap + sample.overlap) / 2)
            size = _size(sample, len(common))
            if left := len(base) + len(own) - 2 * len(common):
                doubts.note(f"{group.label} minus {groups[0].label} is of the {size} that both have, {left} left out")
        else:
            difference = statistics.unpaired(np.array(list(base.values())), values, samples[0].overlap, sample.overlap)
            size = f"{_size(samples[0], len(base))} and {_size(sample, len(own))}"
        yield row._replace(difference=difference, size=f"n = {size}")


def _rows_over_tasks(groups: Sequence[Group], tasks: Sequence[Sequence[Sample]], rows: Sequence[Row]) -> Iterator[Row]:
    """Compare over all tasks, given the rows of each: the interquartile mean of all runs, and the differences."""
    for number, group in enumerate(groups):
        runs = [samples[number].values for samples in tasks]
        summary = statistics.interquartile_mean(runs)
        if any(samples[number].by_fold for samples in tasks):
            summary = summary._replace(bootstrap=None)  # folds are not drawn one by one
        differences = np.array([row.difference.value for row in rows if row.group == number and row.difference])
        difference = statistics.over_tasks(differences) if number else None
        yield Row(ALL, number, group.label, np.concatenate(runs), summary, difference, size=f"n = {len(tasks)} tasks")


def _adjusted(compared: list[Compared]) -> list[Compared]:
    """Add Holm's p over all comparisons on a split; those over all tasks are a question of their own."""
    rows = [(found.metric.stage, row) for found in compared for row in found.rows]
    families: dict[tuple[str, bool], dict[int, float]] = {}
    for n, (stage, row) in enumerate(rows):
        if row.difference and row.difference.p is not None:
            families.setdefault((stage, row.task == ALL), {})[n] = row.difference.p
    adjusted = [row for _, row in rows]
    for family in families.values():
        for n, p in zip(family, statistics.holm(list(family.values())), strict=True):
            adjusted[n] = adjusted[n]._replace(holm=p, family=len(family))
    rest = iter(adjusted)
    return [found._replace(rows=list(islice(rest, len(found.rows)))) for found in compared]


def _size(sample: Sample, n: int) -> str:
    """Say what n counts."""
    seeds = len({member.seed for member in sample.members})
    if sample.by_fold:
        return _count(n, "fold") + (f" of {_count(seeds, 'seed')}" if seeds > 1 else "")
    return _count(n, "seed" if seeds == len(sample.values) else "run")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


class _Answers(NamedTuple):
    """What a model said of the samples of a split."""

    label: str
    split: str
    sha256: str
    classes: bool
    target: np.ndarray  # (N, …)
    score: np.ndarray  # (N,) bool: right; or float: error
    block: int  # samples in a row that count as one


def _answers(group: Group, split: str | None, doubts: Doubts) -> _Answers:
    """Read the newest predictions that a group's only run has made of a split, or of any."""
    if len(group.members) > 1:
        raise UserError(f"--samples compares single models, but {group.label} is {len(group.members)} runs: name one")
    run = group.members[0].run
    files = sorted((run.path / "evaluations").glob("*/predictions.npz"), key=lambda path: -path.stat().st_mtime_ns)
    for path in files:
        own, checkpoint = _read_answers(path, group.label)
        if split not in (own.split, None):
            continue
        if (best := run.best_checkpoint()) and checkpoint != best.name:
            doubts.note(f"{group.label}: these are answers of {checkpoint}, not of the best checkpoint")
        if not np.isfinite(own.score).all():
            raise UserError(f"{run.name} has said nan of some samples: {path}")
        return own
    of, option = (f" of {split}", f" --split {split}") if split else ("", "")
    raise UserError(
        f"{run.name} has no predictions{of}: leyden evaluate {run.name}{option} --save-predictions makes them"
    )


def _read_answers(path: Path, label: str) -> tuple[_Answers, str]:
    """Return what a file holds of the samples that were observed, and the checkpoint that said it."""
    try:
        with np.load(path) as file:
            saved = {name: file[name] for name in file if name != "probability"}
            facts = (label, str(saved["split"]), str(saved["sha256"]), "error" not in saved)
            target, block, checkpoint = saved["target"], int(saved["block"]), str(saved["checkpoint"])
            score = saved["error"] if "error" in saved else saved["prediction"] == target
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    observed = ~np.isnan(target).reshape(len(target), -1).all(1)
    return _Answers(*facts, target[observed], score[observed], block), checkpoint


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")


class _Writer:
    """Writes numbers of a metric, all with the same decimals: two digits of a usual spread."""

    def __init__(self, found: Compared) -> None:
        self.metric = found.metric
        self.factor = 100 if found.metric.share else 1
        self.unit = " points" if found.metric.share else ""
        stds = [row.summary.std for row in found.rows]
        halves = [_half(d.interval or d.bootstrap) for d in (row.difference for row in found.rows) if d]
        usual = [float(np.median(known)) for sizes in (stds, halves) if (known := [size for size in sizes if size])]
        size = self.factor * min(usual, default=abs(found.rows[0].summary.mean) / 100)
        self.decimals = min(8, max(0, 1 - math.floor(math.log10(size)))) if size else 2

    def number(self, value: float | None, sign: bool = False) -> str:
        """Write a value; what there is not is left empty."""
        return "" if value is None else f"{self.factor * value:{'+' if sign else ''}.{self.decimals}f}"

    def interval(self, interval: Interval | None, sign: bool = False) -> str:
        """Write an interval's ends."""
        return f"{self.number(interval.low, sign)} … {self.number(interval.high, sign)}" if interval else ""

    def difference(self, difference: Difference | None, sign: bool = True) -> str:
        """Write a difference with half of its interval, if that is symmetric, as those by t are."""
        if difference is None:
            return ""
        value = difference.value if sign else abs(difference.value)
        half = _half(difference.interval) if difference.error is not None else None
        return self.number(value, sign) + (f" ± {self.number(half)}" if half is not None else "")

    def level(self, difference: Difference) -> str:
        """Say of what level its interval is, with the interval's ends where they are not written as ±."""
        if difference.error is not None:
            return " (95 %)"
        interval = difference.interval or difference.bootstrap
        return f" (95 %, {self.interval(interval, sign=True)})" if interval else ""


def _grids(found: Compared) -> Iterator[Grid]:
    """Lay out the groups, and their differences from the first."""
    write, (name, higher, share) = _Writer(found), found.metric
    groups, differences, tests = [], [], set()
    for row in found.rows:
        names, of = {"task": row.task, "group": row.label}, row.summary
        means = {"n": str(of.n), "mean": write.number(of.mean), "std": write.number(of.std)}
        intervals = {"95 % by t": write.interval(of.interval), "by bootstrap": write.interval(of.bootstrap)}
        groups.append(names | means | intervals)
        if d := row.difference:
            value = {
                f"minus {found.rows[0].label}": write.difference(d),
                "95 %": write.interval(d.interval, sign=True) if d.error is None else "",
                "95 % by bootstrap": write.interval(d.bootstrap, sign=True),
                "test": d.test if d.p is not None else "",
            }
            p_values = {"p": _p(d.p), "Holm": _p(row.holm) if row.family > 1 else "", "Wilcoxon": _p(d.wilcoxon)}
            g = "" if d.effect is None else f"{d.effect:+.2f}"
            effect = {"g": "" if d.pairs else g, "g of pairs": g if d.pairs else ""}
            names["task"] = row.task.removesuffix(" (IQM)")  # the difference over tasks is another mean's
            differences.append(names | value | p_values | effect)
            tests |= {value["test"]} - {""}
    yield _grid(f"{name}{', %' if share else ''} ({'higher' if higher else 'lower'} is better)", groups)
    if differences:
        test = f", {tests.pop()}" if len(tests) == 1 else ""
        differences = [{k: v for k, v in row.items() if not test or k != "test"} for row in differences]
        yield _grid(f"{name}: differences{' in points' if share else ''}{test}", differences)


def _grid(title: str, rows: list[dict[str, str]]) -> Grid:
    """Leave out columns in which nothing stands."""
    header = [name for name in rows[0] if any(row[name] for row in rows)]
    return Grid(title, len({"task", "group"} & set(header)), header, [[row[name] for name in header] for row in rows])


def _words(found: Compared) -> Iterator[str]:
    """Say of each group whether it is better than the first, by how much, and whether that can be known."""
    write, name = _Writer(found), found.metric.name
    several = len({row.task for row in found.rows}) > 1
    for row in found.rows:
        if row.difference and (not several or row.task == ALL):
            yield _sentence(row, row.difference, found, write)
        elif row.summary.n == 1 and len(found.rows) == 1:
            yield f"{row.label} is one run: nothing can be said about the spread of {name}"
    if several:
        yield from _tally(found)


def _sentence(row: Row, difference: Difference, found: Compared, write: _Writer) -> str:
    (_, _, a, *_), name, b = found.rows[0], found.metric.name, row.label
    signed = f"{b} minus {a} is {write.difference(difference)}{write.unit}"
    if difference.p is None:
        alone = any(r.summary.n == 1 for r in found.rows if r.task == row.task and r.group in (0, row.group))
        why = "but one run says nothing about spread" if alone else "and does not vary"
        return f"{signed} of {name}, {why}: nothing can be tested ({row.size})"
    corrected = f"; {_p(row.holm)} by Holm, of {row.family}" if row.family > 1 else ""
    tested = f"p {_equals(difference.p)} ({difference.test}, {row.size}{corrected})"
    level = write.level(difference)
    if row.holm is not None and row.holm < SHOWN:
        better = "better" if (difference.value > 0) == found.metric.higher else "worse"
        size = f"{write.difference(difference, sign=False)}{write.unit}"
        return f"{b} is {better} than {a} by {size} of {name}{level}, {tested}"
    text = f"no difference of {name} can be shown: {signed}{level}, {tested}"
    if least := statistics.detectable(difference, row.family):
        text += f"; the smallest that such groups would show is about {write.number(least)}{write.unit}"
    return text


def _tally(found: Compared) -> Iterator[str]:
    """Count the tasks that each group is better on."""
    for number in dict.fromkeys(row.group for row in found.rows if row.difference):
        rows = [row for row in found.rows if row.group == number and row.task != ALL]
        values = [(row.difference.value if row.difference else 0) * (1 if found.metric.higher else -1) for row in rows]
        shown = [row.holm is not None and row.holm < SHOWN for row in rows]
        better, worse = ([s for v, s in zip(values, shown, strict=True) if sign * v > 0] for sign in (1, -1))
        yield (
            f"{rows[0].label} is better than {found.rows[0].label} in {found.metric.name} on {len(better)} of "
            f"{len(rows)} tasks, shown on {sum(better)}; worse on {len(worse)}, shown on {sum(worse)}"
        )


def _half(interval: Interval | None) -> float | None:
    return (interval.high - interval.low) / 2 if interval else None


def _p(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _equals(p: float) -> str:
    return _p(p) if p < 0.001 else f"= {_p(p)}"
