"""What samples are answered by, as people write it in a table: a class or several labels; as arrays and a field."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from leyden.errors import UserError
from leyden.schema.field import Classes, Field, Labels

Answer = Literal["class", "labels"]
SEPARATOR = ";"  # of labels in a cell


class Targets:
    """One of several classes for each sample: targets (N,) int64."""

    def names(self, cells: Iterable[str]) -> list[str]:
        """Return the names that occur in cells: sorted, numbers by value."""
        names = {name for cell in cells for name in self._split(cell)}
        by_value = all(name.isdecimal() for name in names)
        return sorted(names, key=lambda name: (int(name) if by_value else 0, name))

    def read(self, source: str, cells: Sequence[str], names: list[str]) -> np.ndarray:
        """Return the targets of cells.

        Raises:
            UserError: which names the source, for a name that is none of `names`.
        """
        number = self._numbers(source, cells, names)
        return np.array([number[cell] for cell in cells], np.int64)

    def count(self, targets: np.ndarray) -> int:
        """Return the number of classes, to which `num_classes` must be equal."""
        return int(targets.max()) + 1

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Return the classes (N,) that splits hold in proportion."""
        return targets

    def field(self, targets: np.ndarray, names: list[str]) -> Field:
        """Describe the answers by the training targets."""
        return Classes(names=names, counts=np.bincount(targets, minlength=len(names)).tolist())

    def _split(self, cell: str) -> list[str]:
        return [cell]

    def _numbers(self, source: str, cells: Iterable[str], names: list[str]) -> dict[str, int]:
        number = {name: k for k, name in enumerate(names)}
        if unknown := sorted({name for cell in cells for name in self._split(cell)} - number.keys()):
            raise UserError(f"{source} has the class {unknown[0]!r}, which is none of {names}")
        return number


class LabelTargets(Targets):
    """Any number of several labels for each sample, as in `cat;dog`: targets (N, L) float32, 0 or 1."""

    def read(self, source: str, cells: Sequence[str], names: list[str]) -> np.ndarray:
        """Return the targets of cells."""
        number = self._numbers(source, cells, names)
        targets = np.zeros((len(cells), len(names)), np.float32)
        for row, cell in zip(targets, cells, strict=True):
            row[[number[name] for name in self._split(cell)]] = 1
        return targets

    def count(self, targets: np.ndarray) -> int:
        """Return the number of labels."""
        return targets.shape[1]

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Number the combinations of labels that occur, (N,)."""
        return np.unique(targets, axis=0, return_inverse=True)[1].reshape(-1)

    def field(self, targets: np.ndarray, names: list[str]) -> Field:
        """Describe the answers by the training targets."""
        return Labels(names=names, counts=targets.sum(0).astype(int).tolist(), samples=len(targets))

    def _split(self, cell: str) -> list[str]:
        return [name.strip() for name in cell.split(SEPARATOR) if name.strip()]


KINDS: dict[Answer, type[Targets]] = {"class": Targets, "labels": LabelTargets}
