"""Splits of examples: set aside a number of examples, or one fold of a cross-validation."""

from itertools import islice
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from leyden.errors import UserError
from leyden.folds import Fold

Size = PositiveInt | Annotated[float, Field(gt=0, lt=1)]  # a count of examples, or a fraction of them


def set_aside(
    key: str, size: Size | Fold, labels: np.ndarray, seed: int, stratify: bool, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Choose `size` of the examples at random, or a fold; return their indices, and those of the rest.

    If `stratify`, the classes of `labels` (N,) have the same proportions in both parts and in every slice of the rest.
    Examples of the same group in `groups` (N,) stay together; the size and the proportions are then only approximate.

    Raises:
        UserError: if one side or one of the folds would be empty; the message names `key` or data.folds.
    """
    if not stratify:
        labels = np.zeros_like(labels)
    if isinstance(size, Fold):
        indices = _fold_indices(size, labels, seed, groups)
    else:
        total = len(labels)
        count = size if isinstance(size, int) else round(size * total)
        if not 0 < count < total:
            raise UserError(f"{key}={size} sets {count} of {total} examples aside: 1 to {total - 1} are possible")
        if groups is None:
            order = _shuffle(labels, seed)
            return order[:count], order[count:]
        indices = _choose_groups(count, labels, seed, groups)
        if not 0 < len(indices) < total:
            raise UserError(f"{key}={size}: {count} of {total} examples cannot be set aside without splitting a group")
    rest = np.setdiff1d(np.arange(len(labels)), indices)
    return indices, rest[_shuffle(labels[rest], seed)]


def time_fold(fold: Fold, total: int) -> tuple[int, int]:
    """Return the first step and the end of a fold; all folds are equally long, and training is on the steps before."""
    if fold.num_folds >= total:
        raise UserError(f"data.folds={fold.num_folds} needs more than the {total} steps before the test part: lower it")
    from sklearn.model_selection import TimeSeriesSplit  # the import takes most of a second

    _, steps = next(islice(TimeSeriesSplit(fold.num_folds).split(np.empty(total)), fold.number, None))
    return int(steps[0]), int(steps[-1]) + 1


def _shuffle(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return indices in random order, with the classes in proportion in every slice."""
    order = np.random.default_rng(seed).permutation(len(labels))
    fraction = np.empty(len(labels))  # the position of each example within its class, 0 to 1
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        fraction[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(fraction, kind="stable")]


def _fold_indices(fold: Fold, labels: np.ndarray, seed: int, groups: np.ndarray | None) -> np.ndarray:
    units = np.arange(len(labels)) if groups is None else groups
    classes = np.unique(labels)
    counts = [len(np.unique(units[labels == label])) for label in classes]
    if min(counts) < fold.num_folds:
        available = f"{min(counts)} {'examples' if groups is None else 'groups'}"
        remedy = "each fold needs one: lower it"
        if len(classes) > 1:
            available += f" of the class {classes[np.argmin(counts)]}"
            remedy += ", or set data.stratify=false"
        raise UserError(f"data.folds={fold.num_folds} is more than the {available}, but {remedy}")
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # the import takes most of a second

    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    splits = splitter(fold.num_folds, shuffle=True, random_state=np.random.RandomState(np.random.MT19937(seed)))
    _, indices = next(islice(splits.split(labels, labels, groups), fold.number, None))
    return indices


def _choose_groups(count: int, labels: np.ndarray, seed: int, groups: np.ndarray) -> np.ndarray:
    """Choose random groups that bring the classes nearer to `count` examples; return the examples' indices."""
    names, group = np.unique(groups, return_inverse=True)
    classes, label = np.unique(labels, return_inverse=True)
    sizes = np.zeros((len(names), len(classes)))
    np.add.at(sizes, (group, label), 1)
    remaining = sizes.sum(0) * count / len(labels)
    chosen_groups = []
    for g in np.random.default_rng(seed).permutation(len(names)):
        if np.linalg.norm(remaining - sizes[g]) < np.linalg.norm(remaining):
            remaining -= sizes[g]
            chosen_groups.append(g)
    return np.flatnonzero(np.isin(group, chosen_groups))
