"""The values that groups have of a metric, by task; runs that do not belong together are refused."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leyden.comparison.groups import Group, Member, Objections
from leyden.comparison.metric import Metric
from leyden.errors import UserError, nearest


class Sample(NamedTuple):
    """The values of a group's runs on one task."""

    name: str  # of the metric
    members: list[Member]
    values: np.ndarray  # (n,)

    @property
    def by_fold(self) -> bool:
        """Whether the runs held out different parts of the data."""
        return self.members[0].fold is not None

    @property
    def overlap(self) -> float:
        """See `leyden.statistics.paired`; 0 for runs on the same data."""
        return float(np.mean([member.overlap for member in self.members])) if self.by_fold else 0.0

    def points(self) -> dict[Hashable, float]:
        """Return one value for each seed, or for each fold the mean over its seeds; values of equal keys form pairs."""
        by_key: dict[Hashable, list[float]] = {}
        seeds_are_unique = len({member.seed for member in self.members}) == len(self.members)
        for member, value in zip(self.members, self.values.tolist(), strict=True):
            fingerprint = member.measured_on(self.name)
            if self.by_fold:
                key: Hashable = (member.fold, member.folds, member.measured_on("val"), fingerprint)
            else:
                key = (member.seed, fingerprint if seeds_are_unique else member.run.path)  # a shared seed makes no pair
            by_key.setdefault(key, []).append(value)
        return {key: float(np.mean(values)) for key, values in by_key.items()}


class Measured(NamedTuple):
    """A metric, and for each task ("" if there is only one) a sample of each group."""

    metric: Metric
    tasks: dict[str, list[Sample]]


def choose(names: Sequence[str], groups: Sequence[Group], objections: Objections) -> list[tuple[str, bool | None]]:
    """Return the metrics to compare, and whether more of each is better where that was said, as in `name:higher`.

    By default it is the metric that the best checkpoints are chosen by, on the test and validation splits; folds are
    compared on the part that they held out.

    Raises:
        UserError: when the groups' best checkpoints are chosen by different metrics.
    """
    if names:
        directions = {"higher": True, "lower": False}
        parts = [name.partition(":") for name in names]
        for name, colon, direction in parts:
            if colon and direction not in directions:
                raise UserError(f"--metric {name}:{direction}: write {name}:higher or {name}:lower")
        return [(name, directions.get(direction)) for name, _, direction in parts]
    members = [(group, member) for group in groups for member in group.members]
    (first_group, first), *others = members
    for group, member in others:
        if member.monitor != first.monitor:
            objections.object(
                f"{first_group.label} goes by {first.monitor}, {group.label} by {member.monitor}: "
                "say what to compare, as --metric test/loss"
            )
    logged = {name for _, member in members for name in member.metrics}
    stages = ["test", "val"] if all(member.fold is None for _, member in members) else ["val"]
    metrics = [f"{stage}/{first.monitor}" for stage in stages if f"{stage}/{first.monitor}" in logged]
    if not metrics:
        raise UserError(
            f"{first.run.name} has logged nothing of {' or '.join(stages)}: say what to compare, as --metric train/loss"
        )
    return [(name, None) for name in metrics]


def measure(groups: Sequence[Group], name: str, higher: bool | None, objections: Objections) -> Measured:
    """Collect what groups measured of a metric, by task.

    Raises:
        UserError: when a group has no value, when values are of different data, when a group mixes methods, or when it
            is not known whether more is better.
    """
    measured_groups = [Group(group.label, _having(name, group, objections)) for group in groups]
    members = [member for group in measured_groups for member in group.members]
    _check_kinds(members, objections)
    by_task = [_by(group.members, _task_of(group, name)) for group in measured_groups]
    if any(tasks.keys() != by_task[0].keys() for tasks in by_task):
        by_task = _matched(measured_groups, by_task, name, objections)
    for task in by_task[0]:
        _check_folds([tasks[task] for tasks in by_task], name, objections)
    samples = {}
    for task, label in _task_names(by_task[0]).items():
        pairs = zip(measured_groups, by_task, strict=True)
        runs = [_of_one_method(group.label, tasks[task], name, objections) for group, tasks in pairs]
        samples[label] = [Sample(name, members, np.array([m.metrics[name] for m in members])) for members in runs]
    if not all(member.measured_on(name) for member in members):
        objections.note(f"nothing proves that {name} was measured on the same data: some of it has no fingerprint")
    if not name.startswith("val/") and any(member.fold is not None for member in members):
        objections.note(f"folds share most of what they train on, and all that {name} is of: it tells of no other data")
    values = np.concatenate([sample.values for task in samples.values() for sample in task])
    return Measured(Metric.of(name, higher, values, [group.members[0].raw for group in measured_groups]), samples)


def _having(name: str, group: Group, objections: Objections) -> list[Member]:
    """Return the members that have a number for a metric."""
    if not any(name in member.metrics for member in group.members):
        raise UserError(f"no run of {group.label} has logged {name}{nearest(name, group.members[0].metrics)}")
    having = []
    for member in group.members:
        value = member.metrics.get(name)
        if value is None:
            objections.object(f"{member.run.name} of {group.label} has not logged {name}")
        elif not math.isfinite(value):
            objections.object(f"{member.run.name} of {group.label} ended with {name}={value}")
        else:
            having.append(member)
    if not having:
        raise UserError(f"no run of {group.label} has a number for {name}")
    return having


def _by(members: Sequence[Member], key: Callable[[Member], str]) -> dict[str, list[Member]]:
    grouped: dict[str, list[Member]] = {}
    for member in members:
        grouped.setdefault(key(member), []).append(member)
    return grouped


def _task_of(group: Group, name: str) -> Callable[[Member], str]:
    """Return a function that names a member's task: members measured on the same data have the same."""
    files = {
        data: {m.files for m in members} for data, members in _by(group.members, lambda member: member.data).items()
    }

    def task(member: Member) -> str:
        if member.fold is None:
            return member.measured_on(name) or member.data
        return member.data if len(files[member.data]) == 1 else f"{member.data} {member.files}"

    return task


def _matched(
    groups: Sequence[Group], by_task: list[dict[str, list[Member]]], name: str, objections: Objections
) -> list[dict[str, list[Member]]]:
    """Object to tasks that only some groups have; where forced, match them by name, or the only task of each group."""
    first, *others = zip(groups, by_task, strict=True)
    for (group, tasks), (other, other_tasks) in (pair for x in others for pair in ((x, first), (first, x))):
        for member in (tasks[task][0] for task in tasks if task not in other_tasks):
            objections.object(
                f"{member.run.name} of {group.label} measured {name} on {member.data} (sha256 "
                f"{(member.measured_on(name) or 'unknown')[:8]}), and no run of {other.label} did on the same data"
            )
    if all(len(tasks) == 1 for tasks in by_task):
        return [{"": group.members} for group in groups]
    matched = [task for task in by_task[0] if all(task in tasks for tasks in by_task)]
    rest = [[m for task, members in tasks.items() if task not in matched for m in members] for tasks in by_task]
    by_name = [_by(members, lambda member: member.data) for members in rest]
    common_names = [data for data in by_name[0] if all(data in tasks for tasks in by_name)]
    if not matched and not common_names:
        raise UserError(f"the groups have no data in common to compare {name} on")
    pairs = zip(by_task, by_name, strict=True)
    return [{task: a[task] for task in matched} | {data: b[data] for data in common_names} for a, b in pairs]


def _check_kinds(members: Sequence[Member], objections: Objections) -> None:
    """Object to runs of folds beside runs of the whole of the same data."""
    for data, runs in _by(members, lambda member: member.data).items():
        fold, whole = (next((m for m in runs if (m.fold is None) == is_whole), None) for is_whole in (False, True))
        if fold and whole:
            objections.object(f"{fold.run.name} is a fold of {data}, and {whole.run.name} is not")


def _check_folds(groups: Sequence[list[Member]], name: str, objections: Objections) -> None:
    """Object to the first run of a fold that held out, or was measured on, other data than an earlier one."""
    first_of: dict[Any, Member] = {}
    for member in (member for members in groups for member in members if member.fold is not None):
        pair = (first_of.setdefault(member.fold, member), member)
        cuts = {(m.folds, m.measured_on("val"), m.measured_on(name)) for m in pair}
        if len(cuts) > 1:
            which = (f"fold {m.fold} of {m.folds} in {m.run.name}" for m in pair)
            objections.object(f"{' and '.join(which)} are not the same data")
            return


def _task_names(tasks: dict[str, list[Member]]) -> dict[str, str]:
    """Name each task by its data and, where that is not enough, by the files that the data is read from."""
    if len(tasks) == 1:
        return dict.fromkeys(tasks, "")
    counts = Counter(members[0].data for members in tasks.values())
    names: dict[str, str] = {}
    for task, (member, *_) in tasks.items():
        stems = "-".join(Path(file).stem for file in member.files.split(" ") if file)
        candidates = [member.data] if counts[member.data] == 1 else []
        candidates += [f"{member.data} {which}" for which in (stems, member.files, task[:6], task) if which]
        names[task] = next(name for name in candidates if name not in names.values())
    return names


def _of_one_method(label: str, members: list[Member], metric: str, objections: Objections) -> list[Member]:
    """Object to runs that differ in more than seed and fold; of runs that differ in nothing, keep the newest."""
    first, *others = (member.method() for member in members)
    for member, method in zip(members[1:], others, strict=True):
        if key := next((key for key in {**first, **method} if first.get(key) != method.get(key)), None):
            objections.object(
                f"{label} mixes runs of different configs: {key} is {first.get(key)} in {members[0].run.name} and "
                f"{method.get(key)} in {member.run.name}; name those that belong together, by commas or SWEEP:trial"
            )
            return members
    newest = {(m.seed, m.fold, m.measured_on("val"), m.measured_on(metric)): m for m in members}
    if older := len(members) - len(newest):
        objections.note(f"{label}: {older} older of the same seed left out, for a seed counts once")
    return list(newest.values())
