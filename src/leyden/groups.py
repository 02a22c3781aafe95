"""Groups of runs as `leyden compare` is given them: which runs a word names, and what they measured of a metric.

Nothing is guessed: runs that do not belong together, in a group or beside each other, raise a doubt.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from leyden import signatures
from leyden.check import expectations
from leyden.commands.summary import metrics_of, monitored
from leyden.errors import UserError, nearest
from leyden.run import Run, list_runs, runs_root

if TYPE_CHECKING:
    from leyden.sweep.directory import Sweep

ENDED = ("failed", "pruned", "cancelled")  # states of runs that will not have a result
SHARES = {"accuracy", "precision", "recall", "f1", "iou", "dice", "auc", "auroc", "coverage"}
HIGHER = {*SHARES, "bleu", "chrf", "skill", "density", "modes", "r2", "psnr", "ssim"}
LOWER = {"loss", "mse", "mae", "rmse", "mase", "mape", "ece", "brier", "error", "nll", "nats", "bits", "perplexity"}
LOWER |= {"fid", "kid", "wer", "cer", "ter"}
COMPARABLE = {*SHARES, "ece", "bleu", "chrf", "skill", "mase", "r2"}  # from one data set to another
WHICH_RUN = re.compile(r"(seed|data\.folds?)=")  # overrides that say which of a point's runs this is
METHOD = ("model", "optimizer", "schedule", "feature", "callbacks", "data", "trainer")  # what a result comes from
APART = re.compile(  # keys of it that say which run, which files and what machine
    r"data\.(seed|fold|path|data_dir)$|trainer\.(accelerator|devices|num_nodes|strategy|log_every|enable_)"
)


class Doubts:
    """What speaks against a comparison: it ends it or, where it is forced, is told with it."""

    def __init__(self, force: bool) -> None:
        self.force = force
        self.notes: dict[str, None] = {}  # in order, each once

    def object(self, doubt: str) -> None:
        """Refuse, unless forced.

        Raises:
            UserError: with the doubt.
        """
        if not self.force:
            raise UserError(f"{doubt}; --force compares all the same")
        self.note(f"forced: {doubt}")

    def note(self, fact: str) -> None:
        """Tell something with the comparison."""
        self.notes[fact] = None


@dataclass(frozen=True)
class Member:
    """A run of a group, read once."""

    run: Run
    manifest: dict
    raw: dict  # the config, with its ${…}
    metrics: dict[str, float]

    @classmethod
    def of(cls, run: Run) -> "Member":
        """Read a run's files."""
        manifest = run.manifest
        return cls(run, manifest, manifest.get("raw") or run.config, metrics_of(run))

    @property
    def seed(self) -> Any:
        """What the run drew its random numbers from."""
        return self.raw.get("seed")

    @property
    def fold(self) -> Any:
        """Which part of the data it held out, of `data.folds`."""
        return (self.raw.get("data") or {}).get("fold")

    @property
    def data(self) -> str:
        """The name of its data."""
        chosen = (self.manifest.get("choices") or {}).get("data")
        return chosen or str((self.raw.get("data") or {}).get("_target_")).rpartition(".")[2]

    @property
    def monitor(self) -> str | None:
        """What its best checkpoint is chosen by, less the stage."""
        name = monitored(self.metrics, self.manifest)
        return name and name.partition("/")[2]

    @property
    def overlap(self) -> float:
        """Held-out examples over training examples, before any limit."""
        data, sizes = self.raw["data"], self.manifest.get("data") or {}
        if data.get("limit") is None and "val" in sizes and "train" in sizes:
            return sizes["val"]["size"] / sizes["train"]["size"]
        return 1 / (data["folds"] - 1)

    def measured_on(self, stage: str) -> str | None:
        """The fingerprint of a split, and of the network that features are taken of; None where nobody took one."""
        split = (self.manifest.get("data") or {}).get(stage)
        feature = (self.manifest.get("feature") or {}).get("sha256", "")
        return split and split["sha256"] + feature

    def method(self) -> dict[str, Any]:
        """The settings that a result comes from, by their keys."""
        return {k: v for part in METHOD for k, v in _leaves(self.raw.get(part), part) if not APART.match(k)}


class Group(NamedTuple):
    """What is held against other groups: the runs of a point, of an experiment, of a method on several data sets."""

    label: str
    members: list[Member]


class Metric(NamedTuple):
    """A metric's name, whether more of it is better, and whether it is a share, shown as per cent."""

    name: str
    higher: bool
    share: bool

    @property
    def stage(self) -> str:
        """The split that it is of."""
        return self.name.partition("/")[0]

    @property
    def comparable(self) -> bool:
        """Whether its values mean the same on one data set as on another."""
        return bool(_words(self.name) & COMPARABLE)


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


def read(words: Sequence[str], doubts: Doubts) -> list[Group]:
    """Find the runs of each `[LABEL=]WHAT[,WHAT…]` that have a result.

    Raises:
        UserError: when there are none, some are not finished, or groups share a name or a run.
    """
    groups = [_read(word, doubts) for word in words]
    if len({group.label for group in groups}) < len(groups):
        raise UserError("two groups have the same name: write NAME=GROUP")
    owners: dict[Path, str] = {}
    for label, run in ((group.label, member.run) for group in groups for member in group.members):
        if owners.setdefault(run.path, label) != label:
            doubts.object(f"{run.name} is in both {owners[run.path]} and {label}")
    return groups


def _read(word: str, doubts: Doubts) -> Group:
    label, equals, rest = word.partition("=")
    labelled = bool(equals) and "/" not in label and not _exists(word)
    label, what = (label, rest) if labelled else (word, word)
    parts = [what] if _exists(what) else what.split(",")
    if not all(parts) or not label:
        raise UserError(f"'{word}' leaves out what to compare: write a run, a folder, a sweep, or NAME=GROUP")
    runs = {run.path: run for part in parts for run in _named(part, doubts)}
    states = {path: run.status.get("state", "broken") for path, run in runs.items()}
    for path, state in states.items():
        if state not in ("finished", *ENDED):
            doubts.object(f"{runs[path].name} is {state}: leyden resume {runs[path].name} finishes it")
    label = label if labelled else _short(label)
    ended = Counter(state for state in states.values() if state in ENDED)
    told = ", ".join(f"{count} {state}" for state, count in ended.items())
    members = [Member.of(run) for path, run in runs.items() if states[path] not in ENDED]
    if not members:
        raise UserError(f"{what}: no run has a result ({told})")
    if told:
        doubts.note(f"{label}: left out: {told}")
    return Group(label, sorted(members, key=lambda member: str(member.manifest.get("created"))))


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
    share = bool(_words(name) & SHARES) and values.min() >= 0 and values.max() <= 1
    higher = more_is_better(name, [group.members[0] for group in kept]) if higher is None else higher
    return Measured(Metric(name, higher, share), samples)


def more_is_better(name: str, members: Sequence[Member]) -> bool:
    """Say whether more of a metric is better: as the runs' configs and models do, else by its name.

    Raises:
        UserError: when neither tells.
    """
    kind = name.partition("/")[2]
    for member in members:
        checkpoint = member.raw.get("checkpoint") or {}
        target = str((member.raw.get("model") or {}).get("_target_"))
        own = signatures.class_attribute(target, "monitor")
        for monitor in ((checkpoint.get("monitor"), checkpoint.get("mode", "min")), own):
            if isinstance(monitor, tuple) and str(monitor[0]).partition("/")[2] == kind:
                return monitor[1] == "max"
        for claim in expectations(member.raw):
            if claim.get("metric") == name:
                return claim.get("at_least") is not None
    words = _words(name)
    if bool(words & HIGHER) == bool(words & LOWER):
        raise UserError(f"--metric {name}: is more of it better? write {name}:higher or {name}:lower")
    return bool(words & HIGHER)


def _words(name: str) -> set[str]:
    return set(name.partition("/")[2].split("_"))


def _exists(word: str) -> bool:
    return Path(word).exists() or (runs_root() / word).exists()


def _short(label: str) -> str:
    """A path below the runs folder, less that."""
    root = f"{runs_root()}/"
    return ",".join(part.removeprefix(root).rstrip("/") for part in label.split(","))


def _named(word: str, doubts: Doubts) -> list[Run]:
    """Return the runs that a path, a glob, `last`, a part of a name, a sweep or its trial `SWEEP:7` stands for.

    `last` is the last run, and `last:7` a trial of the last sweep.
    """
    name, colon, number = word.rpartition(":")
    trial = int(number) if colon and number.isdecimal() else None
    name = name if trial is not None else word
    if name == "last" and trial is not None:
        from leyden.sweep.directory import Sweep  # optuna, a second

        return _of_sweep(Sweep.find(name).path, word, trial, doubts)
    for place in (Path(name), runs_root() / name):
        root = Path(place.anchor or ".")
        found = sorted(root.glob(str(place.relative_to(root)))) if set("*?[") & set(name) else [place]
        folders = [path for path in found if path.is_dir()]
        if name and folders:
            runs = [run for folder in folders for run in _in_folder(folder, word, trial, doubts)]
            if runs:
                return runs
    sweeps = [path.parent for path in runs_root().glob("*/*/multirun.yaml") if name in path.parent.name]
    if len(sweeps) == 1:
        return _in_folder(sweeps[0], word, trial, doubts)
    found = [run for run in list_runs() if name in run.name] if trial is None and name != "last" else []
    return found or [Run.find(word)]


def _in_folder(folder: Path, word: str, trial: int | None, doubts: Doubts) -> list[Run]:
    if (folder / "multirun.yaml").is_file():
        return _of_sweep(folder, word, trial, doubts)
    if trial is not None:
        raise UserError(f"{word}: {folder} is no sweep, so it has no trials")
    if (folder / "config.yaml").is_file():
        return [Run(folder.resolve())]
    return [
        Run(path.parent.resolve()) for depth in ("*", "*/*") for path in sorted(folder.glob(f"{depth}/config.yaml"))
    ]


def _of_sweep(folder: Path, word: str, trial: int | None, doubts: Doubts) -> list[Run]:
    """Return the jobs of a trial, by default of the best."""
    from leyden.sweep.directory import Sweep  # optuna, a second

    sweep = Sweep(folder)
    trials = _trials(sweep) if sweep.is_own else _points(folder)
    if trial is None and len(trials) > 1:
        best = [found.number for found in sweep.best()] if sweep.is_own else _best(trials)
        if not best:
            raise UserError(f"{word} has no finished trial")
        if len(best) > 1:
            raise UserError(
                f"{word} has {len(best)} best trials, for it has several objectives: write {word}:{best[0]}"
            )
        trial = best[0]
        doubts.note(f"{_short(word)}: trial {trial}, the best of {len(trials)}: what it was chosen by flatters it")
    if trial is None:
        trial = next(iter(trials), 0)
    if trial not in trials:
        raise UserError(f"{word} has no runs of a trial {trial}; it has those of {', '.join(map(str, sorted(trials)))}")
    return trials[trial]


def _trials(sweep: "Sweep") -> dict[int, list[Run]]:
    trials: dict[int, list[Run]] = {}
    for number, run in sweep.runs().items():
        trials.setdefault(sweep.trial_of(number), []).append(run)
    return trials


def _points(folder: Path) -> dict[int, list[Run]]:
    """The runs of a sweep that keeps no study, by point: runs whose overrides differ in the seed or the fold alone."""
    jobs = (path.parent for path in folder.glob("*/config.yaml"))
    runs = [Run(path.resolve()) for path in sorted(jobs, key=lambda path: (len(path.name), path.name))]
    points: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        own = tuple(text for text in run.manifest.get("overrides", []) if not WHICH_RUN.match(text.lstrip("+")))
        points.setdefault(own, []).append(run)
    return dict(enumerate(points.values()))


def _best(trials: dict[int, list[Run]]) -> list[int]:
    """The point whose runs have the best mean of what their checkpoints are chosen by, on the validation split."""
    means = {}
    for number, runs in trials.items():
        members = [Member.of(run) for run in runs if run.status.get("state") == "finished"]
        name = f"val/{members[0].monitor}" if members else ""
        if members and all(name in member.metrics for member in members):
            sign = 1 if more_is_better(name, members) else -1
            means[number] = sign * np.mean([member.metrics[name] for member in members])
    means = {number: mean for number, mean in means.items() if math.isfinite(mean)}
    return [max(means, key=lambda number: means[number])] if means else []


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


def _leaves(tree: Any, key: str) -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(key, tree)]
    return [leaf for name, value in tree.items() for leaf in _leaves(value, f"{key}.{name}")]
