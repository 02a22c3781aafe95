"""Examples in memory, and how some of them are set aside."""

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, PositiveInt

from leyden.errors import UserError

Size = PositiveInt | Annotated[float, Field(gt=0, lt=1)]  # a count of examples, or a fraction of them


class Split(NamedTuple):
    """Examples as they lie in memory."""

    images: np.ndarray  # (N, C, H, W) uint8
    labels: np.ndarray  # (N,) int64

    def take(self, index: np.ndarray) -> "Split":
        """Copy the examples `index`, in the order of the files."""
        index = np.sort(index)
        return Split(self.images[index], self.labels[index])


def set_aside(key: str, size: Size, labels: np.ndarray, seed: int, stratify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Choose `size` of the examples at random; return their indices, and those of the rest.

    If `stratify`, both hold the classes in proportion, and so does every stretch of the rest.

    Raises:
        UserError: which names `key`, when nothing is left on one side.
    """
    total = len(labels)
    count = size if isinstance(size, int) else round(size * total)
    if not 0 < count < total:
        raise UserError(f"{key}={size} sets {count} of {total} examples aside: 1 to {total - 1} are possible")
    order = np.random.default_rng(seed).permutation(total)
    if stratify:
        fraction = np.empty(total)  # how far through its own class an example stands
        for k in np.unique(labels):
            members = np.flatnonzero(labels[order] == k)
            fraction[members] = (np.arange(len(members)) + 0.5) / len(members)
        order = order[np.argsort(fraction, kind="stable")]
    return order[:count], order[count:]
