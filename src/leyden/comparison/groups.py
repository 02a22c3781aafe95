"""The groups of runs that the arguments of `leyden compare` name.

These functions guess nothing. Every doubt about a comparison is raised as an objection.
"""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from leyden.config.composition import leaves, value_at
from leyden.errors import UserError
from leyden.run.directory import Run, runs_root
from leyden.run.find import find_run, list_runs, sweep_folders
from leyden.run.summary import main_metric, metrics_of

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

STATES_WITHOUT_RESULT = ("failed", "pruned", "cancelled")  # states of runs that have ended without a result
# config groups that a result depends on
METHOD_GROUPS = ("model", "optimizer", "schedule", "feature", "callbacks", "data", "trainer")
FILE_KEYS = ("path", "train", "val", "test", "source", "target")  # keys of `data` that may name its files
TEXT_METRICS = {"bleu", "chrf", "ter", "wer", "cer"}  # metrics that do not depend on the vocabulary
NOT_METHOD = re.compile(  # keys in METHOD_GROUPS in which the runs of a group may differ: seed, fold, files, machine
    rf"data\.(seed|fold|data_dir|{'|'.join(FILE_KEYS)})$"
    r"|trainer\.(accelerator|devices|num_nodes|strategy|log_every|enable_)"
)


class Objections:
    """Reasons against a comparison: an objection ends it or, if the comparison is forced, becomes a note."""

    def __init__(self, force: bool) -> None:
        self.force = force
        self.notes: dict[str, None] = {}  # an ordered set

    def object(self, reason: str) -> None:
        """Refuse the comparison, unless it is forced.

        Raises:
            UserError: with the reason.
        """
        if not self.force:
            raise UserError(f"{reason}; --force compares all the same")
        self.note(f"forced: {reason}")

    def note(self, fact: str) -> None:
        """Add a note to the comparison."""
        self.notes[fact] = None


@dataclass(frozen=True)
class Member:
    """A run of a group, with the content of its files, which are read once."""

    run: Run
    manifest: dict
    raw: dict  # the config with unresolved ${…}
    metrics: dict[str, float]
    seed: Any
    fold: Any  # the part of the data that the run held out
    folds: Any  # the number of parts that the data was split into

    @classmethod
    def of(cls, run: Run) -> "Member":
        """Read a run's files."""
        manifest = run.manifest
        raw = manifest.get("raw") or run.config
        folds = (value_at(raw, f"data.{key}") for key in ("fold", "folds"))
        return cls(run, manifest, raw, metrics_of(run), raw.get("seed"), *folds)

    @property
    def data(self) -> str:
        """The name of the run's data set."""
        return value_at(self.manifest, "choices.data") or str(value_at(self.raw, "data._target_")).rpartition(".")[2]

    @property
    def monitor(self) -> str | None:
        """The metric that chooses the run's best checkpoint, without the stage."""
        name = main_metric(self.metrics, self.manifest)
        return name and name.partition("/")[2]

    @property
    def overlap(self) -> float:
        """The ratio of held-out to training examples, before `data.limit` removes any."""
        data, sizes = self.raw["data"], self.manifest.get("data") or {}
        if data.get("limit") is None and "val" in sizes and "train" in sizes:
            return sizes["val"]["size"] / sizes["train"]["size"]
        return 1 / (data["folds"] - 1)

    @property
    def files(self) -> str:
        """The files that the data is read from, if the config names them, separated by spaces."""
        data = self.raw.get("data") or {}
        return " ".join(data[key] for key in FILE_KEYS if isinstance(data.get(key), str))

    def data_fingerprint(self, name: str) -> str | None:
        """Return the fingerprint of the data on which a metric was measured, or of a split, if there is one.

        It covers the data, the network that computes features, and the vocabulary if tokens are counted.
        """
        stage, _, kind = name.partition("/")
        split = (self.manifest.get("data") or {}).get(stage)
        if not split:
            return None
        feature = (self.manifest.get("feature") or {}).get("sha256", "")
        counts_tokens = kind and not TEXT_METRICS & set(kind.split("_"))
        return split["sha256"] + feature + (split.get("tokens", "") if counts_tokens else "")

    def method(self) -> dict[str, Any]:
        """Return the settings that a result depends on, by their keys."""
        config = {group: self.raw.get(group) for group in METHOD_GROUPS}
        return {key: value for key, value in leaves(config) if value != {} and not NOT_METHOD.match(key)}


class Group(NamedTuple):
    """A group to compare: the runs of a point of a sweep, of an experiment, or of a method on several data sets."""

    label: str
    members: list[Member]


def group_by(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Group items by key; keys and items stay in order."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def read_groups(arguments: Sequence[str], objections: Objections) -> list[Group]:
    """Find the runs of each `[LABEL=]WHAT[,WHAT…]` that have a result.

    Raises:
        UserError: if there are none, some are not finished, or groups share a name or a run.
    """
    groups = [_read_group(argument, objections) for argument in arguments]
    if len({group.label for group in groups}) < len(groups):
        raise UserError("two groups have the same name: write NAME=GROUP")
    owners: dict[Path, str] = {}
    for label, run in ((group.label, member.run) for group in groups for member in group.members):
        if owners.setdefault(run.path, label) != label:
            objections.object(f"{run.name} is in both {owners[run.path]} and {label}")
    return groups


def _read_group(argument: str, objections: Objections) -> Group:
    label, equals, remainder = argument.partition("=")
    has_label = bool(equals) and "/" not in label and not _exists(argument)
    label, selection = (label, remainder) if has_label else (argument, argument)
    parts = [selection] if _exists(selection) else selection.split(",")
    if not all(parts) or not label:
        raise UserError(f"'{argument}' does not say what to compare: write a run, a folder, a sweep, or NAME=GROUP")
    label = label if has_label else _short_label(label)
    runs = {run.path: run for part in parts for run in _find_runs(part, objections)}
    statuses = {path: run.status for path, run in runs.items()}
    states = {path: status.get("state", "broken") for path, status in statuses.items()}
    for path in [path for path, status in statuses.items() if status.get("fast_dev_run")]:
        objections.object(f"{runs[path].name} is a fast_dev_run: it trained a few batches only, to see that it runs")
    for path in [path for path, state in states.items() if state == "broken" and len(runs) > 1]:
        objections.note(f"{label}: left out: {runs[path].name}, whose status.json cannot be read")
        del runs[path], states[path]
    for path, state in states.items():
        if state not in ("finished", *STATES_WITHOUT_RESULT):
            objections.object(f"{runs[path].name} is {state}: leyden resume {runs[path].name} finishes it")
    counts = Counter(state for state in states.values() if state in STATES_WITHOUT_RESULT)
    left_out_text = ", ".join(f"{count} {state}" for state, count in counts.items())
    members = []
    for run in (run for path, run in runs.items() if states[path] not in STATES_WITHOUT_RESULT):
        try:
            members.append(Member.of(run))
        except UserError as error:
            if len(runs) == 1:
                raise
            objections.note(f"{label}: left out: {error}")
    if not members:
        raise UserError(f"{selection}: no run has a result" + (f" ({left_out_text})" if left_out_text else ""))
    if left_out_text:
        objections.note(f"{label}: left out: {left_out_text}")
    return Group(label, sorted(members, key=lambda member: str(member.manifest.get("created"))))


def _exists(path: str) -> bool:
    return Path(path).exists() or (runs_root() / path).exists()


def _short_label(label: str) -> str:
    """Write paths below the runs folder relative to it."""
    root = f"{runs_root()}/"
    return ",".join(part.removeprefix(root).rstrip("/") for part in label.split(","))


def _find_runs(argument: str, objections: Objections) -> list[Run]:
    """Find the runs that are named by a path, a glob, `last`, a part of a name, a sweep or its trial `SWEEP:7`.

    `last` is the last run, and `last:7` a trial of the last sweep.
    """
    name, colon, number = argument.rpartition(":")
    trial = int(number) if colon and number.isdecimal() else None
    name = name if trial is not None else argument
    if name == "last" and trial is not None:
        if not (sweeps := sweep_folders()):
            raise UserError(f"{argument}: there are no sweeps in {runs_root()}")
        return _runs_of_trial(sweeps[-1], argument, trial, objections)
    for path in (Path(name), runs_root() / name) if name else ():
        root = Path(path.anchor or ".")
        matches = sorted(root.glob(str(path.relative_to(root)))) if set("*?[") & set(name) else [path]
        folders = [match for match in matches if match.is_dir()]
        if runs := [run for folder in folders for run in _runs_in_folder(folder, argument, trial, objections)]:
            return runs
    sweeps = [folder for folder in sweep_folders() if name in folder.name]
    if len(sweeps) == 1:
        return _runs_in_folder(sweeps[0], argument, trial, objections)
    runs = [run for run in list_runs() if name in run.name] if trial is None and name != "last" else []
    return runs or [find_run(argument)]


def _runs_in_folder(folder: Path, argument: str, trial: int | None, objections: Objections) -> list[Run]:
    if (folder / "multirun.yaml").is_file():
        return _runs_of_trial(folder, argument, trial, objections)
    if trial is not None:
        raise UserError(f"{argument}: {folder} is not a sweep, so it has no trials")
    if (folder / "config.yaml").is_file():
        return [Run(folder.resolve())]
    config_paths = [path for depth in ("*", "*/*") for path in sorted(folder.glob(f"{depth}/config.yaml"))]
    return [Run(path.parent.resolve()) for path in config_paths]


def _runs_of_trial(folder: Path, argument: str, trial: int | None, objections: Objections) -> list[Run]:
    """Return the runs of a sweep's trial, by default of the best trial."""
    from leyden.sweep.directory import Sweep  # loads optuna, which takes a second

    sweep = Sweep(folder)
    if not sweep.uses_leyden_sweeper:
        raise UserError(f"{argument} has no trials, since Hydra's sweeper made it: name runs, {folder}/0,{folder}/1")
    jobs = group_by(sweep.runs().items(), lambda job: sweep.trial_of(job[0]))
    trials = {number: [run for _, run in runs] for number, runs in jobs.items()}
    if not trials:
        raise UserError(f"{argument} has no runs")
    if trial is None and len(trials) > 1:
        best_numbers = [best_trial.number for best_trial in sweep.best_trials()]
        if not best_numbers:
            raise UserError(f"{argument} has no finished trial")
        if len(best_numbers) > 1:
            raise UserError(
                f"{argument} has several objectives, and {len(best_numbers)} trials are Pareto-optimal: "
                f"write {argument}:{best_numbers[0]}"
            )
        trial = best_numbers[0]
        objections.note(
            f"{_short_label(argument)}: trial {trial}, the best of {len(trials)}: selected on this metric, "
            "so its value is optimistic"
        )
    if trial is None:
        trial = next(iter(trials))
    if trial not in trials:
        numbers = ", ".join(map(str, sorted(trials)))
        raise UserError(f"{argument} has no runs of a trial {trial}; it has those of {numbers}")
    if point := sweep.study.trials[trial].params:
        settings = " ".join(f"{key}={value}" for key, value in point.items())
        objections.note(f"{_short_label(argument)} is {settings}")
    return trials[trial]
