"""What groups of runs measured of a metric, by task; runs that do not belong together are refused."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leyden.comparison.groups import Doubts, Group, Member
from leyden.comparison.metric import Metric
from leyden.errors import UserError, nearest


class Sample(NamedTuple):
    """What the runs of a group measured on one task."""

    stage: str
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
        """One value for each seed, or for each fold the mean over its seeds; those of equal keys pair."""
        found: dict[Hashable, list[float]] = {}
        alone = len({member.seed for member in self.members}) == len(self.members)
        for member, value in zip(self.members, self.values.tolist(), strict=True):
            on: Hashable = member.measured_on(self.stage)
            if self.by_fold:
                key: Hashable = (member.fold, member.measured_on("val"), on)
            else:
                key = (member.seed, on if alone else member.run.path)  # of a seed's several runs none pairs
            found.setdefault(key, []).append(value)
        return {key: float(np.mean(values)) for key, values in found.items()}


class Measured(NamedTuple):
    """What groups measured of a metric: for each task, "" if there is but one, a sample of each group."""

    metric: Metric
    tasks: dict[str, list[Sample]]


def choose(names: Sequence[str], groups: Sequence[Group], doubts: Doubts) -> list[tuple[str, bool | None]]:
    """Return the metrics to compare, and whether more of each is better where that was said, as in `name:higher`.

    By default it is what the best checkpoints are chosen by, on the test and the validation split.

    Raises:
        UserError: when the groups' best checkpoints are chosen by different metrics.
    """
    if names:
        said = {"higher": True, "lower": False}
        split = [name.rpartition(":") if name.rpartition(":")[2] in said else (name, "", "") for name in names]
        return [(name, said.get(direction)) for name, _, direction in split]
    members = [(group, member) for group in groups for member in group.members]
    (first_group, first), *others = members
    for group, member in others:
        if member.monitor != first.monitor:
            doubts.object(
                f"{first_group.label} goes by {first.monitor}, {group.label} by {member.monitor}: "
                "say what to compare, as --metric test/loss"
            )
    logged = {name for _, member in members for name in member.metrics}
    found = [f"{stage}/{first.monitor}" for stage in ("test", "val") if f"{stage}/{first.monitor}" in logged]
    if not found:
        raise UserError(
            f"{first.run.name} has logged nothing of test or val: say what to compare, as --metric train/loss"
        )
    return [(name, None) for name in found]


def measure(groups: Sequence[Group], name: str, higher: bool | None, doubts: Doubts) -> Measured:
    """Collect what groups measured of a metric, by task.

    Raises:
        UserError: when some have not, when they did on different data, when a group's runs are not of one method, or
            when nothing tells whether more of it is better.
    """
    stage = name.partition("/")[0]
    kept = [Group(group.label, _having(name, group, doubts)) for group in groups]
    for group in kept:
        _check_kinds(group, doubts)
    by_task = [_by(group, lambda m: (m.fold is None and m.measured_on(stage)) or m.data) for group in kept]
    if any(tasks.keys() != by_task[0].keys() for tasks in by_task):
        by_task = _matched(kept, by_task, name, doubts)
    for task in by_task[0]:
        _check_folds([tasks[task] for tasks in by_task], name, doubts)
    samples = {}
    for task, label in _task_names(by_task[0]).items():
        chosen = [_of_one_method(g.label, tasks[task], doubts) for g, tasks in zip(kept, by_task, strict=True)]
        samples[label] = [Sample(stage, members, np.array([m.metrics[name] for m in members])) for members in chosen]
    if not all(member.measured_on(stage) for group in kept for member in group.members):
        doubts.note(f"nothing proves that {name} was measured on the same data: some of it has no fingerprint")
    values = np.concatenate([sample.values for task in samples.values() for sample in task])
    return Measured(Metric.of(name, higher, values, [group.members[0].raw for group in kept]), samples)


def _having(name: str, group: Group, doubts: Doubts) -> list[Member]:
    """Return the members that have a number for a metric."""
    if not any(name in member.metrics for member in group.members):
        raise UserError(f"no run of {group.label} has logged {name}{nearest(name, group.members[0].metrics)}")
    kept = []
    for member in group.members:
        value = member.metrics.get(name)
        if value is None:
            doubts.object(f"{member.run.name} of {group.label} has not logged {name}")
        elif not math.isfinite(value):
            doubts.object(f"{member.run.name} of {group.label} ended with {name}={value}")
        else:
            kept.append(member)
    if not kept:
        raise UserError(f"no run of {group.label} has a number for {name}")
    return kept


def _by(group: Group, key: Callable[[Member], str]) -> dict[str, list[Member]]:
    tasks: dict[str, list[Member]] = {}
    for member in group.members:
        tasks.setdefault(key(member), []).append(member)
    return tasks


def _matched(
    groups: Sequence[Group], by_task: list[dict[str, list[Member]]], name: str, doubts: Doubts
) -> list[dict[str, list[Member]]]:
    """Object to tasks that only some groups have; if forced, keep those of one name, or the only one of each."""
    stage = name.partition("/")[0]
    first, *others = zip(groups, by_task, strict=True)
    for (group, tasks), (other, theirs) in (pair for x in others for pair in ((x, first), (first, x))):
        for member in (tasks[task][0] for task in tasks if task not in theirs):
            doubts.object(
                f"{member.run.name} of {group.label} measured {name} on {member.data} (sha256 "
                f"{(member.measured_on(stage) or 'unknown')[:8]}), and no run of {other.label} did on the same data"
            )
    by_name = [_by(group, lambda member: member.data) for group in groups]
    if all(len(tasks) == 1 for tasks in by_name):
        return [{"": group.members} for group in groups]
    common = set.intersection(*(set(tasks) for tasks in by_name))
    if not common:
        raise UserError(f"the groups have no data in common to compare {name} on")
    return [{task: members for task, members in tasks.items() if task in common} for tasks in by_name]


def _check_kinds(group: Group, doubts: Doubts) -> None:
    """Object to runs of folds beside others on the same data."""
    for data, members in _by(group, lambda member: member.data).items():
        if folds := [member for member in members if member.fold is not None]:
            for member in (member for member in members if member.fold is None):
                doubts.object(f"{group.label} mixes a fold of {data}, {folds[0].run.name}, with {member.run.name}")


def _check_folds(groups: Sequence[list[Member]], name: str, doubts: Doubts) -> None:
    """Object to runs of one fold that held out different parts, or were measured on different ones."""
    seen: dict[Any, Member] = {}
    for member in (member for members in groups for member in members if member.fold is not None):
        first = seen.setdefault(member.fold, member)
        if any(first.measured_on(stage) != member.measured_on(stage) for stage in ("val", name.partition("/")[0])):
            which = (f"fold {m.fold} of {m.raw['data'].get('folds')} in {m.run.name}" for m in (first, member))
            doubts.object(f"{' and '.join(which)} are not the same data")


def _task_names(tasks: dict[str, list[Member]]) -> dict[str, str]:
    """Name each task by its data and, where that is not enough, by the file that the data is read of."""
    if len(tasks) == 1:
        return dict.fromkeys(tasks, "")
    counts = Counter(members[0].data for members in tasks.values())
    names = {}
    for task, (member, *_) in tasks.items():
        path = (member.raw.get("data") or {}).get("path")
        which = Path(path).stem if isinstance(path, str) else task[:6]
        name = member.data if counts[member.data] == 1 else f"{member.data} {which}"
        names[task] = name if name not in names.values() else f"{name} {task[:6]}"
    return names


def _of_one_method(label: str, members: list[Member], doubts: Doubts) -> list[Member]:
    """Object to runs that differ in more than seed and fold; of those that differ in nothing keep the newest."""
    first, *others = (member.method() for member in members)
    for member, method in zip(members[1:], others, strict=True):
        if key := next((key for key in {**first, **method} if first.get(key) != method.get(key)), None):
            doubts.object(
                f"{label} mixes runs of different configs: {key} is {first.get(key)} in {members[0].run.name} and "
                f"{method.get(key)} in {member.run.name}; name those that belong together, by commas or SWEEP:trial"
            )
            return members
    newest = {(member.seed, member.fold): member for member in members}
    if older := len(members) - len(newest):
        doubts.note(f"{label}: {older} older of the same seed left out, for a seed counts once")
    return list(newest.values())
