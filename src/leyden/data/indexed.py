"""Loaders for a function that makes a batch from indices: shuffled for training, in order for evaluation."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from leyden.data.loader import Batch, Loader, check_divides, eval_shares
from leyden.data.sampling import draw_order
from leyden.errors import UserError

# Takes the indices (N,) int64 of a global batch and this rank's rows of it; returns the batch of these rows.
BatchFunction = Callable[[np.ndarray, slice], Batch]


class ShuffledLoader(Loader[Batch]):
    """Loads all `size` examples in a new order each epoch, drawn from (seed, epoch), without a smaller last batch.

    With `probabilities` (N,), the `size` examples of an epoch are drawn by them with replacement. `batch_size` is
    global: rank `rank` of `world_size` gets its slice of each batch.
    """

    def __init__(
        self,
        make_batch: BatchFunction,
        size: int,
        *,
        batch_size: int,
        seed: int = 0,
        probabilities: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_divides("data.batch_size", batch_size, world_size)
        if batch_size > size:
            raise UserError(f"data.batch_size={batch_size} is larger than the {size} training examples: lower it")
        super().__init__(size // batch_size)
        self._make_batch = make_batch
        self._batch_size = batch_size
        share = batch_size // world_size
        self._rows = slice(share * rank, share * (rank + 1))
        self._order = lru_cache(maxsize=1)(
            lambda epoch: draw_order(np.random.default_rng([seed, epoch]), size, probabilities)
        )

    def batch(self, epoch: int, index: int) -> Batch:
        """Return this rank's slice of batch `index` of epoch `epoch`."""
        first = index * self._batch_size
        return self._make_batch(self._order(epoch)[first : first + self._batch_size], self._rows)


class OrderedLoader(Loader[Batch]):
    """Loads each of `size` examples once, in order; `batch_size` is global, and the ranks share each batch."""

    def __init__(
        self, make_batch: BatchFunction, size: int, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._shares = eval_shares(size, batch_size, rank, world_size)
        super().__init__(len(self._shares))
        self._make_batch = make_batch

    def batch(self, epoch: int, index: int) -> Batch:
        """Return this rank's share of batch `index`, the same in every epoch."""
        batch_rows, rank_rows = self._shares[index]
        return self._make_batch(np.arange(batch_rows.start, batch_rows.stop), rank_rows)
