"""Samples that a data module's schema reads, as the batches and the words of `leyden predict`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leyden.errors import UserError
from leyden.evaluation.answers import answer, word


def read(data: Any, paths: Sequence[Path], size: int = 1024) -> Iterator[tuple[list[str], Any]]:
    """Yield the names and the batch of the samples in some files; the first that does not fit is raised."""
    for samples in data.schema.read(list(paths), size):
        if samples.problems:
            raise UserError(samples.problems[0])
        yield samples.names, data.to_batch(samples.arrays)


def words(model: Any, data: Any, paths: Sequence[Path], size: int = 1024) -> list[dict[str, Any]]:
    """Return what a model says of the samples in some files."""
    rows = []
    for samples in data.schema.read(list(paths), size):
        columns = answer(model, data.to_batch(samples.arrays), data.schema.answer)
        rows += [row for said in word(data.schema.answer, columns, samples.arrays) for row in said]
    return rows
