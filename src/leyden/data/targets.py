"""Targets parsed from the cells of a table: a class, several labels or a number for each sample."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from leyden.data.sampling import Sampling
from leyden.errors import UserError
from leyden.preparation.scale import scale
from leyden.schema.field import Classes, Field, Labels, Number

Answer = Literal["class", "labels", "number"]
SEPARATOR = ";"  # between the labels in a cell


class Targets:
    """One of several classes for each sample: targets (N,) int64."""

    def names(self, cells: Iterable[str]) -> list[str]:
        """Return the names that occur in cells: sorted, numbers by value."""
        names = {name for cell in cells for name in self._split(cell)}
        by_value = all(name.isdecimal() for name in names)
        return sorted(names, key=lambda name: (int(name) if by_value else 0, name))

    def read(self, source: str, cells: Sequence[str], names: list[str]) -> np.ndarray:
        """Parse cells into targets.

        Raises:
            UserError: if a name is none of `names`; the message names the source.
        """
        index_of = self._index_of_names(source, cells, names)
        return np.array([index_of[cell] for cell in cells], np.int64)

    def count(self, targets: np.ndarray) -> int:
        """Return the number of classes, which `num_classes` must equal."""
        return int(targets.max()) + 1

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Return the classes (N,) to stratify splits by."""
        return targets

    def field(self, targets: np.ndarray, names: list[str]) -> Field:
        """Return the schema of the answers, learned from the training targets."""
        return Classes(names=names, counts=np.bincount(targets, minlength=len(names)).tolist())

    def encode(self, targets: np.ndarray, field: Field) -> np.ndarray:
        """Return the targets as the loss expects them."""
        return targets

    def _split(self, cell: str) -> list[str]:
        return [cell]

    def _index_of_names(self, source: str, cells: Iterable[str], names: list[str]) -> dict[str, int]:
        index_of = {name: k for k, name in enumerate(names)}
        if unknown := sorted({name for cell in cells for name in self._split(cell)} - index_of.keys()):
            raise UserError(f"{source} has the class {unknown[0]!r}, which is none of {names}")
        return index_of


class LabelTargets(Targets):
    """Any number of several labels for each sample, as in `cat;dog`: targets (N, L) float32, 0 or 1."""

    def read(self, source: str, cells: Sequence[str], names: list[str]) -> np.ndarray:
        """Parse cells into targets."""
        index_of = self._index_of_names(source, cells, names)
        targets = np.zeros((len(cells), len(names)), np.float32)
        for row, cell in zip(targets, cells, strict=True):
            row[[index_of[name] for name in self._split(cell)]] = 1
        return targets

    def count(self, targets: np.ndarray) -> int:
        """Return the number of labels."""
        return targets.shape[1]

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Return the number of each sample's combination of labels, (N,)."""
        return np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1)

    def field(self, targets: np.ndarray, names: list[str]) -> Field:
        """Return the schema of the answers, learned from the training targets."""
        return Labels(names=names, counts=targets.sum(0).astype(int).tolist(), samples=len(targets))

    def _split(self, cell: str) -> list[str]:
        return [name.strip() for name in cell.split(SEPARATOR) if name.strip()]


class NumberTargets(Targets):
    """A number for each sample: targets (N,) float64 in their own unit, scaled for the loss."""

    def __init__(self, column: str, unit: str | None) -> None:
        """`column` is the name of the numbers, and `unit` is their unit."""
        self._column, self._unit = column, unit

    def names(self, cells: Iterable[str]) -> list[str]:
        """Return no names."""
        return []

    def read(self, source: str, cells: Sequence[str], names: list[str]) -> np.ndarray:
        """Parse cells into targets.

        Raises:
            UserError: if a cell is not a finite number; the message names the source and the column.
        """
        return np.array([self._number(source, cell) for cell in cells])

    def count(self, targets: np.ndarray) -> int:
        """Return 1, since a net has one output."""
        return 1

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Return one stratum for all, because numbers are split at random."""
        return np.zeros(len(targets), np.int64)

    def field(self, targets: np.ndarray, names: list[str]) -> Field:
        """Return the schema of the answers, learned from the training targets."""
        return Number.fit(targets, self._column, self._unit)

    def encode(self, targets: np.ndarray, field: Field) -> np.ndarray:
        """Return the targets scaled, (N,) float32."""
        assert isinstance(field, Number)
        return scale(targets, np.float64(field.mean), np.float64(field.std)).astype(np.float32)

    def _number(self, source: str, cell: str) -> float:
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{source} has {cell!r} in the column {self._column}, which is not a finite number")
        return number


def check_sampling(sampling: Sampling, answer: Answer) -> None:
    """Refuse to balance classes where there are none.

    Raises:
        UserError: if `sampling` needs one class for each sample.
    """
    if answer != "class" and sampling != "uniform":
        raise UserError(f"data.sampling={sampling} needs one class for each sample, not answer={answer}")


def make_targets(answer: Answer, column: str, unit: str | None) -> Targets:
    """Return the targets that read the cells of a column."""
    if answer == "number":
        return NumberTargets(column, unit)
    return LabelTargets() if answer == "labels" else Targets()
