"""Reads samples by a data module's schema, and answers them, as `leyden predict` does."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leyden.errors import UserError
from leyden.evaluation.answers import answer, to_records


def read(data: Any, paths: Sequence[Path], size: int = 1024) -> Iterator[tuple[list[str], Any]]:
    """Yield the names and the batch of the samples in some files; raise the first problem."""
    for samples in data.schema.read(list(paths), size):
        if samples.problems:
            raise UserError(samples.problems[0])
        yield samples.names, data.to_batch(samples.arrays)


def words(model: Any, data: Any, paths: Sequence[Path], size: int = 1024) -> list[dict[str, Any]]:
    """Return a model's answers for the samples in some files, in words."""
    rows = []
    for samples in data.schema.read(list(paths), size):
        columns = answer(model, data.to_batch(samples.arrays), data.schema.answer)
        rows += [row for answers in to_records(data.schema.answer, columns, samples.arrays) for row in answers]
    return rows
