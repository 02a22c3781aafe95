"""Trained models compared by their predictions for the same samples."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from leyden import statistics
from leyden.comparison.groups import Group, Objections
from leyden.comparison.metric import Metric
from leyden.comparison.rows import Compared, Row, adjust
from leyden.errors import UserError
from leyden.files.formats import PREDICTIONS
from leyden.statistics import Summary


def compare_samples(groups: Sequence[Group], objections: Objections) -> list[Compared]:
    """Compare the predictions of single models for the same samples, which `leyden evaluate --save-predictions` saved.

    Raises:
        UserError: for a group of several runs, a run without saved predictions, and predictions of different samples.
    """
    first = _answers(groups[0], None, objections)
    answers = [first, *(_answers(group, first.split, objections) for group in groups[1:])]
    for other in answers[1:]:
        if (other.split, other.classes) != (first.split, first.classes) or not _equal(other.target, first.target):
            raise UserError(f"{first.label} and {other.label} predict different samples: evaluate both on one split")
        if other.sha256 != first.sha256:
            objections.object(f"{first.label} and {other.label} predict different samples with the same targets")
    n = max(1, len(first.score) // first.block)
    size = f"n = {n} {'samples' if first.block == 1 else 'block of samples' if n == 1 else 'blocks of samples'}"
    if first.block > 1:
        objections.note(f"samples overlap: every {first.block} consecutive samples count as one")
    objections.note(
        "this compares two trained models; only runs of several seeds show whether the difference is general"
    )
    rows = []
    for number, other in enumerate(answers):
        difference = None
        if number and first.classes:
            difference = statistics.same_answers(first.score, other.score)
        elif number:
            difference = statistics.same_samples(first.score, other.score, first.block)
        summary = Summary(n, float(other.score.mean()))
        rows.append(Row("", number, other.label, np.empty(0), summary, difference, size=size))
    name = f"{first.split}/{'accuracy' if first.classes else 'mse'}"
    return adjust([Compared(Metric(name, higher=first.classes, share=first.classes), rows)])


class _Answers(NamedTuple):
    """A model's predictions for the samples of a split."""

    label: str
    split: str
    sha256: str
    classes: bool
    target: np.ndarray  # (N, …)
    score: np.ndarray  # (N,) bool: whether it is right; or float: its error
    block: int  # number of consecutive samples that count as one


def _answers(group: Group, split: str | None, objections: Objections) -> _Answers:
    """Read the newest saved predictions of a group's only run, for a split or for any split."""
    if len(group.members) > 1:
        raise UserError(f"--samples compares single models, but {group.label} is {len(group.members)} runs: name one")
    run = group.members[0].run
    files = sorted((run.path / "evaluations").glob("*/predictions.npz"), key=lambda path: -path.stat().st_mtime_ns)
    for path in files:
        answers, checkpoint = _read_answers(path, group.label)
        if split not in (answers.split, None):
            continue
        if (best := run.best_checkpoint()) and checkpoint != best.name:
            objections.note(f"{group.label}: these predictions are of {checkpoint}, not of the best checkpoint")
        if not len(answers.score):
            raise UserError(f"{run.name} has predictions, but none of its targets was observed: {path}")
        if not np.isfinite(answers.score).all():
            raise UserError(f"{run.name} has predicted nan for some samples: {path}")
        return answers
    split_text, option = (f" of {split}", f" --split {split}") if split else ("", "")
    raise UserError(
        f"{run.name} has no predictions{split_text}: leyden evaluate {run.name}{option} --save-predictions makes them"
    )


def _read_answers(path: Path, label: str) -> tuple[_Answers, str]:
    """Return a file's predictions for the samples that were observed, and the checkpoint that made them."""
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file if name != "probability"}
            PREDICTIONS.check(path, {key: value.item() for key, value in arrays.items() if key == "format"})
            facts = (label, str(arrays["split"]), str(arrays["sha256"]), "error" not in arrays)
            target, block, checkpoint = arrays["target"], int(arrays["block"]), str(arrays["checkpoint"])
            score = arrays["error"] if "error" in arrays else arrays["prediction"] == target
    except UserError:
        raise
    except Exception as error:  # zipfile and numpy raise eight kinds of errors for damaged files
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    observed = ~np.isnan(target).reshape(len(target), -1).all(1)
    return _Answers(*facts, target[observed], score[observed], block), checkpoint


def _check_size(path: Path) -> None:
    """Refuse an archive whose content is larger than its file: leyden never compresses its arrays."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("its arrays are compressed; leyden writes them uncompressed")


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
