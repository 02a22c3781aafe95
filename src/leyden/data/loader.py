"""Base of the loaders: epochs that can start at any batch, and the ranks' shares of a batch."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch

from leyden.errors import UserError

Batch = TypeVar("Batch")


class Loader(Generic[Batch]):
    """Base of the loaders, whose batches are a pure function of (seed, epoch, index), made on the model's device.

    A subclass defines `batch(epoch, index)`. Each call of `iter()` starts the next epoch, unless `seek` has chosen
    another one.
    """

    resident = True  # batches are made on the model's device, so they need not be moved

    def __init__(self, length: int) -> None:
        self._length = length
        self._next = (0, 0)

    def __len__(self) -> int:
        return self._length

    def seek(self, epoch: int, batch: int) -> None:
        """Make the next `iter()` start at this batch of this epoch, as if all batches before it had been read."""
        self._next = (epoch, batch)

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self._next
        self._next = (epoch + 1, 0)
        return (self.batch(epoch, index) for index in range(start, self._length))

    def batch(self, epoch: int, index: int) -> Batch:
        """Return this rank's share of batch `index` of epoch `epoch`."""
        raise NotImplementedError


def device_and_ranks(trainer: Any) -> tuple[torch.device, dict[str, int]]:
    """Return the trainer's device, and its rank and number of ranks; without a trainer, the CPU and a single rank."""
    if trainer is None:
        return torch.device("cpu"), {"rank": 0, "world_size": 1}
    return trainer.strategy.root_device, {"rank": trainer.global_rank, "world_size": trainer.world_size}


def check_divides(key: str, batch_size: int, world_size: int) -> None:
    """Raise a UserError if the ranks cannot share a global batch equally."""
    if batch_size % world_size:
        below, above = batch_size // world_size * world_size, -(-batch_size // world_size) * world_size
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(f"{key}={batch_size} does not divide by the {world_size} ranks; the nearest is {nearest}")


def eval_shares(size: int, batch_size: int, rank: int, world_size: int) -> list[tuple[slice, slice]]:
    """Split `size` examples into batches of `batch_size` over all ranks; return each batch and this rank's rows of it.

    All ranks get the same number of batches, and no rank's share is empty, since a net may communicate with the other
    ranks in every batch. If fewer than `world_size` examples are left at the end, they join the batch before.
    """
    check_divides("data.eval_batch_size", batch_size, world_size)
    if size < world_size:
        raise UserError(f"{size} examples to evaluate are fewer than the {world_size} ranks: use fewer devices")
    edges = [*range(0, size, batch_size), size]
    if edges[-1] - edges[-2] < world_size and len(edges) > 2:
        del edges[-2]
    shares = []
    for first, last in pairwise(edges):
        start, stop = ((last - first) * r // world_size for r in (rank, rank + 1))
        shares.append((slice(first, last), slice(start, stop)))
    return shares
