"""Examples in memory, and how some of them are set aside: so many, or one part of a cross-validation."""

from itertools import islice
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, PositiveInt

from leyden.errors import UserError

Size = PositiveInt | Annotated[float, Field(gt=0, lt=1)]  # a count of examples, or a fraction of them
Folds = Annotated[int, Field(ge=2)]


class Split(NamedTuple):
    """Examples as they lie in memory."""

    images: np.ndarray  # (N, C, H, W) uint8
    labels: np.ndarray  # (N,) int64
    groups: np.ndarray | None = None  # (N,): examples of one group, such as a patient, are never parted

    def take(self, index: np.ndarray) -> "Split":
        """Copy the examples `index`, in the order of the files."""
        index = np.sort(index)
        return Split(self.images[index], self.labels[index], None if self.groups is None else self.groups[index])


class Fold(NamedTuple):
    """One part of a cross-validation."""

    number: int  # from 0
    of: int

    @classmethod
    def chosen(cls, folds: int | None, fold: int | None) -> "Fold | None":
        """Return what `data.folds` and `data.fold` say, None if both are; UserError if they do not fit together."""
        if folds is None and fold is None:
            return None
        if folds is None:
            raise UserError(f"data.fold={fold} says not of how many: set data.folds too")
        if fold is None:
            raise UserError(f"data.folds={folds} says not which: set data.fold=0 to {folds - 1} too")
        if fold >= folds:
            raise UserError(f"data.fold={fold} is not one of data.folds={folds}: they count from 0 to {folds - 1}")
        return cls(fold, folds)


def set_aside(
    key: str, size: Size | Fold, labels: np.ndarray, seed: int, stratify: bool, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Choose `size` of the examples at random, or a fold; return their indices, and those of the rest.

    If `stratify`, both hold the classes in proportion, and so does every stretch of the rest. No group of `groups`
    (N,) is parted: the size, and the proportions, are then those that whole groups come nearest to.

    Raises:
        UserError: which names `key` (or data.folds), when nothing is left on one side, or not for every fold.
    """
    if not stratify:
        labels = np.zeros_like(labels)
    if isinstance(size, Fold):
        chosen = _fold(size, labels, seed, groups)
    else:
        total = len(labels)
        count = size if isinstance(size, int) else round(size * total)
        if not 0 < count < total:
            raise UserError(f"{key}={size} sets {count} of {total} examples aside: 1 to {total - 1} are possible")
        if groups is None:
            order = _shuffled(labels, seed)
            return order[:count], order[count:]
        chosen = _whole_groups(count, labels, seed, groups)
        if not 0 < len(chosen) < total:
            raise UserError(f"{key}={size}: {count} of {total} examples cannot be set aside without parting a group")
    rest = np.setdiff1d(np.arange(len(labels)), chosen)
    return chosen, rest[_shuffled(labels[rest], seed)]


def time_fold(fold: Fold, total: int) -> tuple[int, int]:
    """Return where a fold of `total` steps begins and ends: as long as the others, and after all it is trained on."""
    if fold.of >= total:
        raise UserError(f"data.folds={fold.of} needs more than the {total} steps before the test part: lower it")
    from sklearn.model_selection import TimeSeriesSplit  # takes most of a second to import

    _, part = next(islice(TimeSeriesSplit(fold.of).split(np.empty(total)), fold.number, None))
    return int(part[0]), int(part[-1]) + 1


def _shuffled(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return indices in random order, every stretch of which has the classes in proportion."""
    order = np.random.default_rng(seed).permutation(len(labels))
    fraction = np.empty(len(labels))  # how far through its own class an example stands
    for k in np.unique(labels):
        members = np.flatnonzero(labels[order] == k)
        fraction[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(fraction, kind="stable")]


def _fold(fold: Fold, labels: np.ndarray, seed: int, groups: np.ndarray | None) -> np.ndarray:
    """Return the indices of a fold."""
    units = np.arange(len(labels)) if groups is None else groups
    classes = np.unique(labels)
    counts = [len(np.unique(units[labels == k])) for k in classes]
    if min(counts) < fold.of:
        what = f"{min(counts)} {'examples' if groups is None else 'groups'}"
        of, way_out = "", ""
        if len(classes) > 1:
            of, way_out = f" of the class {classes[np.argmin(counts)]}", ", or set data.stratify=false"
        raise UserError(f"data.folds={fold.of} is more than the {what}{of}, but each fold needs one: lower it{way_out}")
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # takes most of a second to import

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    parts = kind(fold.of, shuffle=True, random_state=np.random.RandomState(np.random.MT19937(seed)))
    _, part = next(islice(parts.split(labels, labels, groups), fold.number, None))
    return part


def _whole_groups(count: int, labels: np.ndarray, seed: int, groups: np.ndarray) -> np.ndarray:
    """Choose groups at random, each if with it the classes come nearer to their share of `count` examples."""
    names, group = np.unique(groups, return_inverse=True)
    classes, label = np.unique(labels, return_inverse=True)
    held = np.zeros((len(names), len(classes)))
    np.add.at(held, (group, label), 1)
    missing = held.sum(0) * count / len(labels)
    chosen = []
    for g in np.random.default_rng(seed).permutation(len(names)):
        if np.linalg.norm(missing - held[g]) < np.linalg.norm(missing):
            missing -= held[g]
            chosen.append(g)
    return np.flatnonzero(np.isin(group, chosen))
