"""Trained models compared by their answers to the same samples."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from leyden import statistics
from leyden.comparison.groups import Group, Objections
from leyden.comparison.metric import Metric
from leyden.comparison.rows import Compared, Row, adjusted
from leyden.errors import UserError
from leyden.statistics import Summary


def compare_samples(groups: Sequence[Group], objections: Objections) -> list[Compared]:
    """Compare the answers of single models to the same samples, as `leyden evaluate --save-predictions` kept them.

    Raises:
        UserError: for a group of several runs, one whose predictions are not saved, and other samples than the first's.
    """
    first = _answers(groups[0], None, objections)
    answers = [first, *(_answers(group, first.split, objections) for group in groups[1:])]
    for other in answers[1:]:
        if (other.split, other.classes) != (first.split, first.classes) or not _equal(other.target, first.target):
            raise UserError(f"{first.label} and {other.label} have answered other samples; evaluate both on one split")
        if other.sha256 != first.sha256:
            objections.object(f"{first.label} and {other.label} have answered other samples, if with the same targets")
    n = max(1, len(first.score) // first.block)
    size = f"n = {n} {'samples' if first.block == 1 else 'block of samples' if n == 1 else 'blocks of samples'}"
    if first.block > 1:
        objections.note(f"samples overlap: each {first.block} in a row count as one")
    objections.note("this is about these trained models: whether another seed would agree, runs of several seeds tell")
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
    return adjusted([Compared(Metric(name, higher=first.classes, share=first.classes), rows)])


class _Answers(NamedTuple):
    """A model's answers to the samples of a split."""

    label: str
    split: str
    sha256: str
    classes: bool
    target: np.ndarray  # (N, …)
    score: np.ndarray  # (N,) bool: right; or float: error
    block: int  # samples in a row that count as one


def _answers(group: Group, split: str | None, objections: Objections) -> _Answers:
    """Read the newest predictions that a group's only run has made of a split, or of any."""
    if len(group.members) > 1:
        raise UserError(f"--samples compares single models, but {group.label} is {len(group.members)} runs: name one")
    run = group.members[0].run
    files = sorted((run.path / "evaluations").glob("*/predictions.npz"), key=lambda path: -path.stat().st_mtime_ns)
    for path in files:
        answers, checkpoint = _read_answers(path, group.label)
        if split not in (answers.split, None):
            continue
        if (best := run.best_checkpoint()) and checkpoint != best.name:
            objections.note(f"{group.label}: these are answers of {checkpoint}, not of the best checkpoint")
        if not len(answers.score):
            raise UserError(f"nothing was observed of what {run.name} has answered: {path}")
        if not np.isfinite(answers.score).all():
            raise UserError(f"{run.name} has said nan of some samples: {path}")
        return answers
    split_text, option = (f" of {split}", f" --split {split}") if split else ("", "")
    raise UserError(
        f"{run.name} has no predictions{split_text}: leyden evaluate {run.name}{option} --save-predictions makes them"
    )


def _read_answers(path: Path, label: str) -> tuple[_Answers, str]:
    """Return a file's answers to the samples that were observed, and the checkpoint that gave them."""
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file if name != "probability"}
            facts = (label, str(arrays["split"]), str(arrays["sha256"]), "error" not in arrays)
            target, block, checkpoint = arrays["target"], int(arrays["block"]), str(arrays["checkpoint"])
            score = arrays["error"] if "error" in arrays else arrays["prediction"] == target
    except Exception as error:  # zipfile and numpy raise eight kinds of errors for damaged headers
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    observed = ~np.isnan(target).reshape(len(target), -1).all(1)
    return _Answers(*facts, target[observed], score[observed], block), checkpoint


def _check_size(path: Path) -> None:
    """Refuse an archive whose content is larger than its file, because leyden compresses none of its arrays."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("its arrays are compressed; leyden writes them uncompressed")


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
