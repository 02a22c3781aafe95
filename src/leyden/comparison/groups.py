"""The groups of runs that the words of `leyden compare` name.

Nothing is guessed: what speaks against a comparison is raised as an objection.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from leyden.comparison.metric import more_is_better
from leyden.config.composition import leaves
from leyden.errors import UserError
from leyden.run.directory import Run, runs_root
from leyden.run.find import find_run, list_runs, sweep_folders
from leyden.run.summary import metrics_of, monitored

if TYPE_CHECKING:
    from leyden.sweep.directory import Sweep

ENDED = ("failed", "pruned", "cancelled")  # states of runs that will have no result
WHICH_RUN = re.compile(r"(seed|data\.folds?)=")  # overrides that say which of a point's runs this is
METHOD = ("model", "optimizer", "schedule", "feature", "callbacks", "data", "trainer")  # what a result comes from
FILES = ("path", "train", "val", "test", "source", "target")  # keys of data that may name them
OF_TEXTS = {"bleu", "chrf", "ter", "wer", "cer"}  # metrics that no vocabulary changes
APART = re.compile(  # keys of it that say which run, which files and what machine
    rf"data\.(seed|fold|data_dir|{'|'.join(FILES)})$|trainer\.(accelerator|devices|num_nodes|strategy|log_every|enable_)"
)


class Objections:
    """What speaks against a comparison: an objection ends it or, where it is forced, becomes a note."""

    def __init__(self, force: bool) -> None:
        self.force = force
        self.notes: dict[str, None] = {}  # an ordered set

    def object(self, reason: str) -> None:
        """Refuse, unless forced.

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
        """The seed of the run's random numbers."""
        return self.raw.get("seed")

    @property
    def fold(self) -> Any:
        """The part of the data that the run held out, of `data.folds`."""
        return (self.raw.get("data") or {}).get("fold")

    @property
    def folds(self) -> Any:
        """The number of parts that the data was split into."""
        return (self.raw.get("data") or {}).get("folds")

    @property
    def data(self) -> str:
        """The name of its data."""
        chosen = (self.manifest.get("choices") or {}).get("data")
        return chosen or str((self.raw.get("data") or {}).get("_target_")).rpartition(".")[2]

    @property
    def monitor(self) -> str | None:
        """The metric that its best checkpoint is chosen by, without the stage."""
        name = monitored(self.metrics, self.manifest)
        return name and name.partition("/")[2]

    @property
    def overlap(self) -> float:
        """Held-out examples over training examples, before any limit."""
        data, sizes = self.raw["data"], self.manifest.get("data") or {}
        if data.get("limit") is None and "val" in sizes and "train" in sizes:
            return sizes["val"]["size"] / sizes["train"]["size"]
        return 1 / (data["folds"] - 1)

    @property
    def files(self) -> str:
        """The files that its data is read from, where the config names them."""
        data = self.raw.get("data") or {}
        return " ".join(data[key] for key in FILES if isinstance(data.get(key), str))

    def measured_on(self, name: str) -> str | None:
        """The fingerprint of what a metric, or a split, was measured on; None where there is none.

        It covers the data, the network that computes features, and the vocabulary if tokens are counted.
        """
        stage, _, kind = name.partition("/")
        split = (self.manifest.get("data") or {}).get(stage)
        if not split:
            return None
        feature = (self.manifest.get("feature") or {}).get("sha256", "")
        counts_tokens = kind and not OF_TEXTS & set(kind.split("_"))
        return split["sha256"] + feature + (split.get("tokens", "") if counts_tokens else "")

    def method(self) -> dict[str, Any]:
        """The settings that a result comes from, by their keys."""
        parts = {part: self.raw.get(part) for part in METHOD}
        return {key: value for key, value in leaves(parts) if value != {} and not APART.match(key)}


class Group(NamedTuple):
    """The runs of a point, of an experiment, or of a method on several data sets."""

    label: str
    members: list[Member]


def read(words: Sequence[str], objections: Objections) -> list[Group]:
    """Find the runs of each `[LABEL=]WHAT[,WHAT…]` that have a result.

    Raises:
        UserError: when there are none, some are not finished, or groups share a name or a run.
    """
    groups = [_read(word, objections) for word in words]
    if len({group.label for group in groups}) < len(groups):
        raise UserError("two groups have the same name: write NAME=GROUP")
    owners: dict[Path, str] = {}
    for label, run in ((group.label, member.run) for group in groups for member in group.members):
        if owners.setdefault(run.path, label) != label:
            objections.object(f"{run.name} is in both {owners[run.path]} and {label}")
    return groups


def _read(word: str, objections: Objections) -> Group:
    label, equals, rest = word.partition("=")
    has_label = bool(equals) and "/" not in label and not _exists(word)
    label, what = (label, rest) if has_label else (word, word)
    parts = [what] if _exists(what) else what.split(",")
    if not all(parts) or not label:
        raise UserError(f"'{word}' leaves out what to compare: write a run, a folder, a sweep, or NAME=GROUP")
    runs = {run.path: run for part in parts for run in _named(part, objections)}
    states = {path: run.status.get("state", "broken") for path, run in runs.items()}
    label = label if has_label else _short(label)
    for path in [path for path, state in states.items() if state == "broken" and len(runs) > 1]:
        objections.note(f"{label}: left out: {runs[path].name}, whose status.json cannot be read")
        del runs[path], states[path]
    for path, state in states.items():
        if state not in ("finished", *ENDED):
            objections.object(f"{runs[path].name} is {state}: leyden resume {runs[path].name} finishes it")
    ended = Counter(state for state in states.values() if state in ENDED)
    text = ", ".join(f"{count} {state}" for state, count in ended.items())
    candidates = [run for path, run in runs.items() if states[path] not in ENDED]
    members = [member for run in candidates if (member := _member(run, runs, label, objections))]
    if not members:
        raise UserError(f"{what}: no run has a result" + (f" ({text})" if text else ""))
    if text:
        objections.note(f"{label}: left out: {text}")
    return Group(label, sorted(members, key=lambda member: str(member.manifest.get("created"))))


def _member(run: Run, runs: Mapping[Path, Run], label: str, objections: Objections) -> Member | None:
    """Read a run; leave it out if it cannot be read and is one of several."""
    try:
        return Member.of(run)
    except UserError as error:
        if len(runs) == 1:
            raise
        objections.note(f"{label}: left out: {error}")
        return None


def _exists(word: str) -> bool:
    return Path(word).exists() or (runs_root() / word).exists()


def _short(label: str) -> str:
    """Return paths below the runs folder relative to it."""
    root = f"{runs_root()}/"
    return ",".join(part.removeprefix(root).rstrip("/") for part in label.split(","))


def _named(word: str, objections: Objections) -> list[Run]:
    """Return the runs that a path, a glob, `last`, a part of a name, a sweep or its trial `SWEEP:7` stands for.

    `last` is the last run, and `last:7` a trial of the last sweep.
    """
    name, colon, number = word.rpartition(":")
    trial = int(number) if colon and number.isdecimal() else None
    name = name if trial is not None else word
    if name == "last" and trial is not None:
        folders = sweep_folders()
        if not folders:
            raise UserError(f"{word}: no such sweep in {runs_root()}")
        return _of_sweep(folders[-1], word, trial, objections)
    for place in (Path(name), runs_root() / name):
        root = Path(place.anchor or ".")
        matches = sorted(root.glob(str(place.relative_to(root)))) if set("*?[") & set(name) else [place]
        folders = [path for path in matches if path.is_dir()]
        if name and folders:
            runs = [run for folder in folders for run in _in_folder(folder, word, trial, objections)]
            if runs:
                return runs
    sweeps = [folder for folder in sweep_folders() if name in folder.name]
    if len(sweeps) == 1:
        return _in_folder(sweeps[0], word, trial, objections)
    matches = [run for run in list_runs() if name in run.name] if trial is None and name != "last" else []
    return matches or [find_run(word)]


def _in_folder(folder: Path, word: str, trial: int | None, objections: Objections) -> list[Run]:
    if (folder / "multirun.yaml").is_file():
        return _of_sweep(folder, word, trial, objections)
    if trial is not None:
        raise UserError(f"{word}: {folder} is no sweep, so it has no trials")
    if (folder / "config.yaml").is_file():
        return [Run(folder.resolve())]
    files = [path for depth in ("*", "*/*") for path in sorted(folder.glob(f"{depth}/config.yaml"))]
    return [Run(path.parent.resolve()) for path in files]


def _of_sweep(folder: Path, word: str, trial: int | None, objections: Objections) -> list[Run]:
    """Return the jobs of a trial, by default of the best."""
    from leyden.sweep.directory import Sweep  # optuna, a second

    sweep = Sweep(folder)
    trials = _trials(sweep) if sweep.is_own else _points(folder)
    if trial is None and len(trials) > 1:
        best = [frozen.number for frozen in sweep.best()] if sweep.is_own else _best(trials)
        if not best:
            raise UserError(f"{word} has no finished trial")
        if len(best) > 1:
            raise UserError(
                f"{word} has {len(best)} best trials, for it has several objectives: write {word}:{best[0]}"
            )
        trial = best[0]
        objections.note(
            f"{_short(word)}: trial {trial}, the best of {len(trials)}: selected on this metric, "
            "so its value is optimistic"
        )
    if trial is None:
        trial = next(iter(trials), 0)
    if not trials:
        raise UserError(f"{word} has no runs")
    if trial not in trials:
        raise UserError(f"{word} has no runs of a trial {trial}; it has those of {', '.join(map(str, sorted(trials)))}")
    return trials[trial]


def _trials(sweep: "Sweep") -> dict[int, list[Run]]:
    trials: dict[int, list[Run]] = {}
    for number, run in sweep.runs().items():
        trials.setdefault(sweep.trial_of(number), []).append(run)
    return trials


def _points(folder: Path) -> dict[int, list[Run]]:
    """Return the runs of a sweep without a study by point: their overrides differ in the seed or fold only."""
    jobs = (path.parent for path in folder.glob("*/config.yaml"))
    runs = [Run(path.resolve()) for path in sorted(jobs, key=lambda path: (len(path.name), path.name))]
    points: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        point = tuple(text for text in run.manifest.get("overrides", []) if not WHICH_RUN.match(text.lstrip("+")))
        points.setdefault(point, []).append(run)
    return dict(enumerate(points.values()))


def _best(trials: dict[int, list[Run]]) -> list[int]:
    """Return the point whose runs have the best mean of their monitored metric on the validation split."""
    means = {}
    for number, runs in trials.items():
        members = [Member.of(run) for run in runs if run.status.get("state") == "finished"]
        name = f"val/{members[0].monitor}" if members else ""
        if members and all(name in member.metrics for member in members):
            sign = 1 if more_is_better(name, [member.raw for member in members]) else -1
            means[number] = sign * np.mean([member.metrics[name] for member in members])
    means = {number: mean for number, mean in means.items() if math.isfinite(mean)}
    return [max(means, key=lambda number: means[number])] if means else []
