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

    name: str  # of the metric
    members: list[Member]
    values: np.ndarray  # (n,)

    @property
    def by_fold(self) -> bool:
        """Whether the runs held out different parts of the data."""
        return self.members[0].fold is not None

    @property
    def overlap(self) -> float:
        """See `leyden.comparison.statistics.paired`; 0 for runs on the same data."""
        return float(np.mean([member.overlap for member in self.members])) if self.by_fold else 0.0

    def points(self) -> dict[Hashable, float]:
        """One value for each seed, or for each fold the mean over its seeds; those of equal keys pair."""
        found: dict[Hashable, list[float]] = {}
        alone = len({member.seed for member in self.members}) == len(self.members)
        for member, value in zip(self.members, self.values.tolist(), strict=True):
            on = member.measured_on(self.name)
            if self.by_fold:
                key: Hashable = (member.fold, member.folds, member.measured_on("val"), on)
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

    By default it is what the best checkpoints are chosen by, on the test and the validation split; of folds, on what
    they held out.

    Raises:
        UserError: when the groups' best checkpoints are chosen by different metrics.
    """
    if names:
        said = {"higher": True, "lower": False}
        split = [name.partition(":") for name in names]
        for name, colon, direction in split:
            if colon and direction not in said:
                raise UserError(f"--metric {name}:{direction}: write {name}:higher or {name}:lower")
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
    stages = ["test", "val"] if all(member.fold is None for _, member in members) else ["val"]
    found = [f"{stage}/{first.monitor}" for stage in stages if f"{stage}/{first.monitor}" in logged]
    if not found:
        raise UserError(
            f"{first.run.name} has logged nothing of {' or '.join(stages)}: say what to compare, as --metric train/loss"
        )
    return [(name, None) for name in found]


def measure(groups: Sequence[Group], name: str, higher: bool | None, doubts: Doubts) -> Measured:
    """Collect what groups measured of a metric, by task.

    Raises:
        UserError: when some have not, when they did on different data, when a group's runs are not of one method, or
            when nothing tells whether more of it is better.
    """
    kept = [Group(group.label, _having(name, group, doubts)) for group in groups]
    members = [member for group in kept for member in group.members]
    _check_kinds(members, doubts)
    by_task = [_by(group.members, _task_of(group, name)) for group in kept]
    if any(tasks.keys() != by_task[0].keys() for tasks in by_task):
        by_task = _matched(kept, by_task, name, doubts)
    for task in by_task[0]:
        _check_folds([tasks[task] for tasks in by_task], name, doubts)
    samples = {}
    for task, label in _task_names(by_task[0]).items():
        chosen = [_of_one_method(g.label, tasks[task], name, doubts) for g, tasks in zip(kept, by_task, strict=True)]
        samples[label] = [Sample(name, found, np.array([m.metrics[name] for m in found])) for found in chosen]
    if not all(member.measured_on(name) for member in members):
        doubts.note(f"nothing proves that {name} was measured on the same data: some of it has no fingerprint")
    if not name.startswith("val/") and any(member.fold is not None for member in members):
        doubts.note(f"folds share most of what they train on, and all that {name} is of: it tells of no other data")
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


def _by(members: Sequence[Member], key: Callable[[Member], str]) -> dict[str, list[Member]]:
    found: dict[str, list[Member]] = {}
    for member in members:
        found.setdefault(key(member), []).append(member)
    return found


def _task_of(group: Group, name: str) -> Callable[[Member], str]:
    """Return what says which task a member is of: what was measured on the same data is one."""
    files = {data: {m.files for m in own} for data, own in _by(group.members, lambda member: member.data).items()}

    def task(member: Member) -> str:
        if member.fold is None:
            return member.measured_on(name) or member.data
        return member.data if len(files[member.data]) == 1 else f"{member.data} {member.files}"

    return task


def _matched(
    groups: Sequence[Group], by_task: list[dict[str, list[Member]]], name: str, doubts: Doubts
) -> list[dict[str, list[Member]]]:
    """Object to tasks that only some groups have; if forced, match those by name, or the only one of each."""
    first, *others = zip(groups, by_task, strict=True)
    for (group, tasks), (other, theirs) in (pair for x in others for pair in ((x, first), (first, x))):
        for member in (tasks[task][0] for task in tasks if task not in theirs):
            doubts.object(
                f"{member.run.name} of {group.label} measured {name} on {member.data} (sha256 "
                f"{(member.measured_on(name) or 'unknown')[:8]}), and no run of {other.label} did on the same data"
            )
    if all(len(tasks) == 1 for tasks in by_task):
        return [{"": group.members} for group in groups]
    matched = [task for task in by_task[0] if all(task in tasks for tasks in by_task)]
    rest = [[m for task, found in tasks.items() if task not in matched for m in found] for tasks in by_task]
    by_name = [_by(members, lambda member: member.data) for members in rest]
    named = [data for data in by_name[0] if all(data in tasks for tasks in by_name)]
    if not matched and not named:
        raise UserError(f"the groups have no data in common to compare {name} on")
    pairs = zip(by_task, by_name, strict=True)
    return [{task: a[task] for task in matched} | {data: b[data] for data in named} for a, b in pairs]


def _check_kinds(members: Sequence[Member], doubts: Doubts) -> None:
    """Object to runs of folds beside others on the same data."""
    for data, own in _by(members, lambda member: member.data).items():
        fold, whole = (next((m for m in own if (m.fold is None) == is_whole), None) for is_whole in (False, True))
        if fold and whole:
            doubts.object(f"{fold.run.name} is a fold of {data}, and {whole.run.name} is not")


def _check_folds(groups: Sequence[list[Member]], name: str, doubts: Doubts) -> None:
    """Object to the first run of a fold that held out another part than the one before, or was measured on another."""
    seen: dict[Any, Member] = {}
    for member in (member for members in groups for member in members if member.fold is not None):
        pair = (seen.setdefault(member.fold, member), member)
        cuts = {(m.folds, m.measured_on("val"), m.measured_on(name)) for m in pair}
        if len(cuts) > 1:
            which = (f"fold {m.fold} of {m.folds} in {m.run.name}" for m in pair)
            doubts.object(f"{' and '.join(which)} are not the same data")
            return


def _task_names(tasks: dict[str, list[Member]]) -> dict[str, str]:
    """Name each task by its data and, where that is not enough, by the files that the data is read from."""
    if len(tasks) == 1:
        return dict.fromkeys(tasks, "")
    counts = Counter(members[0].data for members in tasks.values())
    names: dict[str, str] = {}
    for task, (member, *_) in tasks.items():
        stems = "-".join(Path(file).stem for file in member.files.split(" ") if file)
        tried = [member.data] if counts[member.data] == 1 else []
        tried += [f"{member.data} {which}" for which in (stems, member.files, task[:6], task) if which]
        names[task] = next(name for name in tried if name not in names.values())
    return names


def _of_one_method(label: str, members: list[Member], metric: str, doubts: Doubts) -> list[Member]:
    """Object to runs that differ in more than seed and fold; of those that differ in nothing keep the newest."""
    first, *others = (member.method() for member in members)
    for member, method in zip(members[1:], others, strict=True):
        if key := next((key for key in {**first, **method} if first.get(key) != method.get(key)), None):
            doubts.object(
                f"{label} mixes runs of different configs: {key} is {first.get(key)} in {members[0].run.name} and "
                f"{method.get(key)} in {member.run.name}; name those that belong together, by commas or SWEEP:trial"
            )
            return members
    newest = {(m.seed, m.fold, m.measured_on("val"), m.measured_on(metric)): m for m in members}
    if older := len(members) - len(newest):
        doubts.note(f"{label}: {older} older of the same seed left out, for a seed counts once")
    return list(newest.values())
