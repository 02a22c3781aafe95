"""Comparison of single trained models by their scores on the same samples."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from leyden import statistics
from leyden.comparison.groups import Group, Objections
from leyden.comparison.metric import Metric, more_is_better
from leyden.comparison.rows import MetricComparison, Row, adjust
from leyden.errors import UserError
from leyden.files.formats import PREDICTIONS
from leyden.statistics import Difference, Summary

SCORE_PREFIX = "score."  # prefix of the names of score arrays


def compare_samples(groups: Sequence[Group], objections: Objections) -> list[MetricComparison]:
    """Compare the scores of single models on the same samples, which `leyden evaluate --save-predictions` saved.

    Raises:
        UserError: if a group has several runs, a run has no saved predictions, or the samples are different.
    """
    first = _newest_answers(groups[0], None, objections)
    answers = [first, *(_newest_answers(group, first.split, objections) for group in groups[1:])]
    for other in answers[1:]:
        same_kind = (other.split, [*other.scores]) == (first.split, [*first.scores])
        if not same_kind or not _are_equal(other.target, first.target):
            raise UserError(f"{first.label} and {other.label} predict different samples: evaluate both on one split")
        if other.sha256 != first.sha256:
            objections.object(f"{first.label} and {other.label} predict different samples with the same targets")
    if first.block > 1:
        objections.note(f"samples overlap: every {first.block} consecutive samples count as one")
    objections.note(
        "this compares two trained models; only runs of several seeds show whether the difference is general"
    )
    configs = [group.members[0].raw for group in groups]
    return adjust([_compare_score(name, answers, configs) for name in first.scores])


class _Answers(NamedTuple):
    """A model's scores on the samples of a split; samples whose target was not observed are left out."""

    label: str
    split: str
    sha256: str
    target: np.ndarray  # (N, …)
    scores: dict[str, np.ndarray]  # (N,), or (N, P): the parts whose sums determine a metric
    block: int  # number of consecutive samples that count as one


def _compare_score(score: str, answers: Sequence[_Answers], configs: Sequence[dict]) -> MetricComparison:
    """Compare each model's score with the first model's."""
    first, name = answers[0], f"{answers[0].split}/{score}"
    n = max(1, len(first.target) // first.block)
    size = f"n = {n} {'samples' if first.block == 1 else 'block of samples' if n == 1 else 'blocks of samples'}"
    rows = []
    for number, other in enumerate(answers):
        baseline, values = first.scores[score], other.scores[score]
        difference = _difference(baseline, values, first.block) if number else None
        summary = Summary(n, float(_metric_of_sums(values)(values.sum(0)) if values.ndim == 2 else values.mean()))
        rows.append(Row("", number, other.label, np.empty(0), summary, difference, size=size))
    higher = more_is_better(name, configs)
    return MetricComparison(Metric(name, higher, share=_is_binary(first.scores[score])), rows)


def _difference(a: np.ndarray, b: np.ndarray, block: int) -> Difference:
    if a.ndim == 2:
        return statistics.compare_sums(a, b, _metric_of_sums(a), block)
    if _is_binary(a) and _is_binary(b):
        return statistics.compare_answers(a == 1, b == 1)
    return statistics.compare_samples(a, b, block)


def _is_binary(values: np.ndarray) -> bool:
    return values.ndim == 1 and bool(np.isin(values, (0, 1)).all())


def _metric_of_sums(parts: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that computes a metric from the sums of its parts; see `leyden.contracts.ScoresSamples`."""
    return {2: statistics.ratio, 10: statistics.bleu}[parts.shape[1]]


def _newest_answers(group: Group, split: str | None, objections: Objections) -> _Answers:
    """Read the newest saved predictions of a group's only run, on the given split or on any."""
    if len(group.members) > 1:
        raise UserError(f"--samples compares single models, but {group.label} is {len(group.members)} runs: name one")
    run = group.members[0].run
    paths = sorted((run.path / "evaluations").glob("*/predictions.npz"), key=lambda path: -path.stat().st_mtime_ns)
    for path in paths:
        answers, checkpoint = _read_answers(path, group.label)
        if split not in (answers.split, None):
            continue
        if (best := run.best_checkpoint()) and checkpoint != best.name:
            objections.note(f"{group.label}: these predictions are of {checkpoint}, not of the best checkpoint")
        if not len(answers.target):
            raise UserError(f"{run.name} has predictions, but none of its targets was observed: {path}")
        if not all(np.isfinite(values).all() for values in answers.scores.values()):
            raise UserError(f"{run.name} has predicted nan for some samples: {path}")
        return answers
    split_text, option = (f" of {split}", f" --split {split}") if split else ("", "")
    raise UserError(
        f"{run.name} has no predictions{split_text}: leyden evaluate {run.name}{option} --save-predictions makes them"
    )


def _read_answers(path: Path, label: str) -> tuple[_Answers, str]:
    """Read a file of predictions; return the scores of the samples with observed targets, and the checkpoint's name."""
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as file:
            PREDICTIONS.check(path, {key: file[key].item() for key in file if key == "format"})
            scores = {name.removeprefix(SCORE_PREFIX): file[name] for name in file if name.startswith(SCORE_PREFIX)}
            split, sha256, checkpoint = (str(file[name]) for name in ("split", "sha256", "checkpoint"))
            target, block = file["target"], int(file["block"])
        if not scores or not all(len(values) == len(target) for values in scores.values()):
            raise ValueError("it has no scores of its samples; leyden evaluate --save-predictions writes them")
        for name, values in scores.items():
            if values.ndim > 2 or (values.ndim == 2 and values.shape[1] not in (2, 10)):
                raise ValueError(f"the score {name} has the shape {values.shape}; see leyden.contracts.ScoresSamples")
    except UserError:
        raise
    except Exception as error:  # zipfile and numpy raise eight kinds of errors for damaged files
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    is_float = target.dtype.kind == "f"
    observed = ~np.isnan(target).reshape(len(target), -1).all(1) if is_float else np.ones(len(target), bool)
    scores = {name: values[observed] for name, values in scores.items()}
    return _Answers(label, split, sha256, target[observed], scores, block), checkpoint


def _check_size(path: Path) -> None:
    """Refuse an archive whose content is larger than its file: leyden never compresses its arrays."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("its arrays are compressed; leyden writes them uncompressed")


def _are_equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
