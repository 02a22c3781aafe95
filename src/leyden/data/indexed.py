"""Loaders over examples that a function takes by their indices: shuffled to train, in order to evaluate."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from leyden.data.loader import Batch, Loader, check_divides, eval_shares
from leyden.errors import UserError

Take = Callable[[np.ndarray], Batch]  # from indices (B,) int64 to the batch of those examples


class ShuffledLoader(Loader[Batch]):
    """All of `size` examples in a new order each epoch, drawn from (seed, epoch); a smaller last batch is left out.

    `batch_size` is global: rank `rank` of `world_size` gets its slice of each batch.
    """

    def __init__(
        self, take: Take, size: int, *, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        check_divides("data.batch_size", batch_size, world_size)
        if batch_size > size:
            raise UserError(f"data.batch_size={batch_size} is larger than the {size} training examples")
        super().__init__(size // batch_size)
        self._take = take
        self._batch_size = batch_size
        self._first, self._share = batch_size // world_size * rank, batch_size // world_size
        self._order = lru_cache(maxsize=1)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(size))

    def batch(self, epoch: int, index: int) -> Batch:
        """Return this rank's slice of batch `index` of epoch `epoch`."""
        first = index * self._batch_size + self._first
        return self._take(self._order(epoch)[first : first + self._share])


class OrderedLoader(Loader[Batch]):
    """Each of `size` examples once and in order; the ranks share each batch, of `batch_size` in all."""

    def __init__(self, take: Take, size: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._rows = eval_shares(size, batch_size, rank, world_size)
        super().__init__(len(self._rows))
        self._take = take

    def batch(self, epoch: int, index: int) -> Batch:
        """Return this rank's share of batch `index`, the same in every epoch."""
        rows = self._rows[index]
        return self._take(np.arange(rows.start, rows.stop))
