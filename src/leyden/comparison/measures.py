"""Collect the values of a metric in each group, by task, and refuse runs that do not belong together."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leyden.comparison.groups import Group, Member, Objections, group_by
from leyden.comparison.metric import Metric
from leyden.errors import UserError, nearest
from leyden.metric_names import find_metric


class Sample(NamedTuple):
    """The values of a group's runs on one task."""

    metric_name: str
    members: list[Member]
    values: np.ndarray  # (n,)

    @property
    def has_folds(self) -> bool:
        """Whether the runs held out different parts of the data."""
        return self.members[0].fold is not None

    @property
    def overlap(self) -> float:
        """The `overlap` of `leyden.statistics.paired`; 0 for runs on the same data."""
        return float(np.mean([member.overlap for member in self.members])) if self.has_folds else 0.0

    def values_by_key(self) -> dict[Hashable, float]:
        """Return a value for each seed, or for each fold (its seeds averaged); values with equal keys are paired."""
        seeds_are_unique = len({member.seed for member in self.members}) == len(self.members)

        def key(pair: tuple[Member, float]) -> Hashable:
            member, _ = pair
            fingerprint = member.data_fingerprint(self.metric_name)
            if self.has_folds:
                return member.fold, member.folds, member.data_fingerprint("val"), fingerprint
            # runs that share a seed cannot be paired
            return member.seed, fingerprint if seeds_are_unique else member.run.path

        pairs = group_by(zip(self.members, self.values.tolist(), strict=True), key)
        return {key: float(np.mean([value for _, value in values])) for key, values in pairs.items()}


def choose_metrics(
    names: Sequence[str], groups: Sequence[Group], objections: Objections
) -> list[tuple[str, bool | None]]:
    """Return the metrics to compare, and whether more of each is better if the user wrote that, as in `name:higher`.

    The default is the metric that chooses the best checkpoints, on the test and validation splits; folds are compared
    on the part that they held out.

    Raises:
        UserError: if the groups' best checkpoints are chosen by different metrics.
    """
    members = [(group, member) for group in groups for member in group.members]
    logged_names = {name for _, member in members for name in member.metrics}
    if names:
        directions = {"higher": True, "lower": False}
        parts = [name.partition(":") for name in names]
        for name, colon, direction in parts:
            if colon and direction not in directions:
                raise UserError(f"--metric {name}:{direction}: write {name}:higher or {name}:lower")
        return [(find_metric(name, logged_names) or name, directions.get(direction)) for name, _, direction in parts]
    (first_group, first), *others = members
    for group, member in others:
        if member.monitor != first.monitor:
            objections.object(
                f"{first_group.label} monitors {first.monitor}, and {group.label} {member.monitor}: "
                "choose what to compare, as --metric test/loss"
            )
    stages = ["test", "val"] if all(member.fold is None for _, member in members) else ["val"]
    metrics = [f"{stage}/{first.monitor}" for stage in stages if f"{stage}/{first.monitor}" in logged_names]
    if not metrics:
        raise UserError(
            f"{first.run.name} has not logged {first.monitor} for {' or '.join(stages)}: "
            "choose what to compare, as --metric train/loss"
        )
    return [(name, None) for name in metrics]


def measure(
    groups: Sequence[Group], name: str, higher: bool | None, objections: Objections
) -> tuple[Metric, dict[str, list[Sample]]]:
    """Collect the values of a metric; return it, and for each task a sample of each group. A single task is named "".

    Raises:
        UserError: if a group has no value, values were measured on different data, a group mixes methods, or it is not
            known whether more is better.
    """
    measured_groups = [Group(group.label, _members_with_metric(name, group, objections)) for group in groups]
    members = [member for group in measured_groups for member in group.members]
    _check_mixed_folds(members, objections)
    by_task = [group_by(group.members, _task_of(group, name)) for group in measured_groups]
    if any(tasks.keys() != by_task[0].keys() for tasks in by_task):
        by_task = _match_tasks(measured_groups, by_task, name, objections)
    for task in by_task[0]:
        _check_folds([tasks[task] for tasks in by_task], name, objections)
    samples = {}
    for task, label in _task_names(by_task[0]).items():
        pairs = zip(measured_groups, by_task, strict=True)
        runs = [_keep_newest(group.label, tasks[task], name, objections) for group, tasks in pairs]
        samples[label] = [Sample(name, members, np.array([m.metrics[name] for m in members])) for members in runs]
    if not all(member.data_fingerprint(name) for member in members):
        objections.note(f"{name} may have been measured on different data: some runs have no fingerprint of it")
    if not name.startswith("val/") and any(member.fold is not None for member in members):
        objections.note(
            f"folds share most of their training data and all data of {name}, so the result holds for these data only"
        )
    values = np.concatenate([sample.values for task in samples.values() for sample in task])
    return Metric.of(name, higher, values, [group.members[0].raw for group in measured_groups]), samples


def _members_with_metric(name: str, group: Group, objections: Objections) -> list[Member]:
    """Return the members that have a finite value of a metric."""
    if not any(name in member.metrics for member in group.members):
        raise UserError(f"no run of {group.label} has logged {name}{nearest(name, group.members[0].metrics)}")
    members = []
    for member in group.members:
        value = member.metrics.get(name)
        if value is None:
            objections.object(f"{member.run.name} of {group.label} has not logged {name}")
        elif not math.isfinite(value):
            objections.object(f"{member.run.name} of {group.label} ended with {name}={value}")
        else:
            members.append(member)
    if not members:
        raise UserError(f"no run of {group.label} has a finite value of {name}")
    return members


def _task_of(group: Group, name: str) -> Callable[[Member], str]:
    """Return a function that names the task of a member; members that were measured on the same data share a task."""
    by_data = group_by(group.members, lambda member: member.data)
    files = {data: {member.files for member in members} for data, members in by_data.items()}

    def task(member: Member) -> str:
        if member.fold is None:
            return member.data_fingerprint(name) or member.data
        return member.data if len(files[member.data]) == 1 else f"{member.data} {member.files}"

    return task


def _match_tasks(
    groups: Sequence[Group], by_task: list[dict[str, list[Member]]], name: str, objections: Objections
) -> list[dict[str, list[Member]]]:
    """Object to tasks that only some groups have.

    If the comparison is forced, tasks are matched by their names, or the only task of one group with that of another.
    """
    first, *others = zip(groups, by_task, strict=True)
    for (group, tasks), (other, other_tasks) in (pair for x in others for pair in ((x, first), (first, x))):
        for member in (tasks[task][0] for task in tasks if task not in other_tasks):
            objections.object(
                f"{member.run.name} of {group.label} measured {name} on {member.data} (sha256 "
                f"{(member.data_fingerprint(name) or 'unknown')[:8]}), and no run of {other.label} did on the same data"
            )
    if all(len(tasks) == 1 for tasks in by_task):
        return [{"": group.members} for group in groups]
    common_tasks = [task for task in by_task[0] if all(task in tasks for tasks in by_task)]
    other_members = [
        [m for task, members in tasks.items() if task not in common_tasks for m in members] for tasks in by_task
    ]
    by_name = [group_by(members, lambda member: member.data) for members in other_members]
    common_names = [data for data in by_name[0] if all(data in tasks for tasks in by_name)]
    if not common_tasks and not common_names:
        raise UserError(f"the groups have no data in common to compare {name} on")
    pairs = zip(by_task, by_name, strict=True)
    return [{task: a[task] for task in common_tasks} | {data: b[data] for data in common_names} for a, b in pairs]


def _check_mixed_folds(members: Sequence[Member], objections: Objections) -> None:
    """Object to a comparison of runs on folds of data with runs on all of it."""
    for data, runs in group_by(members, lambda member: member.data).items():
        fold_run, full_run = (next((m for m in runs if (m.fold is None) == is_full), None) for is_full in (False, True))
        if fold_run and full_run:
            objections.object(f"{fold_run.run.name} is a fold of {data}, and {full_run.run.name} is not")


def _check_folds(groups: Sequence[list[Member]], name: str, objections: Objections) -> None:
    """Object to a run whose held-out or measured data differ from those of an earlier run of the same fold."""
    first_of_fold: dict[Any, Member] = {}
    for member in (member for members in groups for member in members if member.fold is not None):
        pair = (first_of_fold.setdefault(member.fold, member), member)
        if len({(m.folds, m.data_fingerprint("val"), m.data_fingerprint(name)) for m in pair}) > 1:
            folds = (f"fold {m.fold} of {m.folds} in {m.run.name}" for m in pair)
            objections.object(f"{' and '.join(folds)} are not the same data")
            return


def _task_names(tasks: dict[str, list[Member]]) -> dict[str, str]:
    """Name each task by its data set; if several tasks share it, add the files that the data is read from."""
    if len(tasks) == 1:
        return dict.fromkeys(tasks, "")
    counts = Counter(members[0].data for members in tasks.values())
    names: dict[str, str] = {}
    for task, (member, *_) in tasks.items():
        stems = "-".join(Path(file).stem for file in member.files.split(" ") if file)
        candidates = [member.data] if counts[member.data] == 1 else []
        candidates += [f"{member.data} {detail}" for detail in (stems, member.files, task[:6], task) if detail]
        names[task] = next(name for name in candidates if name not in names.values())
    return names


def _keep_newest(label: str, members: list[Member], metric: str, objections: Objections) -> list[Member]:
    """Object to runs that differ in more than seed and fold; of runs with equal seeds and folds, keep the newest."""
    first, *others = (member.method() for member in members)
    for member, method in zip(members[1:], others, strict=True):
        if key := next((key for key in {**first, **method} if first.get(key) != method.get(key)), None):
            objections.object(
                f"{label} mixes runs of different configs: {key} is {first.get(key)} in {members[0].run.name} and "
                f"{method.get(key)} in {member.run.name}; name the runs of one config, by commas or as SWEEP:trial"
            )
            return members
    newest_members = {(m.seed, m.fold, m.data_fingerprint("val"), m.data_fingerprint(metric)): m for m in members}
    if older := len(members) - len(newest_members):
        objections.note(f"{label}: {older} older runs of the same seed are left out, because a seed counts once")
    return list(newest_members.values())
