"""Batches of sentence pairs of similar length, made on the model's device."""

from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch

from leyden.batch import PairBatch
from leyden.data.indexed import BatchFunction
from leyden.data.loader import Loader, check_divides
from leyden.errors import UserError

POOL = 50  # number of batches whose sentences are sorted by length together


class PaddedTokens(NamedTuple):
    """The token ids of one language's sentences, padded to the longest."""

    ids: np.ndarray  # (N, T) int32, PAD past each end
    length: np.ndarray  # (N,) int64: how many ids each sentence has


class PairStore:
    """Token ids on one device; a call with indices returns their batch, padded to its longest sentences."""

    def __init__(self, source: PaddedTokens, target: PaddedTokens, device: torch.device) -> None:
        self._device = device
        self._lengths = source.length, target.length  # on the host, so that no batch waits for the device
        self._tokens = [torch.from_numpy(array).to(device) for array in (*source, *target)]

    def __call__(self, index: np.ndarray, rows: slice = slice(None)) -> PairBatch:
        """Return the pairs `index[rows]`, one rank's share of the batch `index`."""
        row = torch.from_numpy(index[rows]).to(self._device, non_blocking=True)
        source, source_length, target, target_length = self._tokens
        longest_source, longest_target = (int(length[index[rows]].max()) for length in self._lengths)
        return PairBatch(
            source[:, :longest_source].index_select(0, row).long(),
            source_length.index_select(0, row),
            target[:, :longest_target].index_select(0, row).long(),
            target_length.index_select(0, row),
            float(self._lengths[1][index].mean() - 1),
        )


class BucketLoader(Loader[PairBatch]):
    """Loads shuffled batches of pairs of similar length; a smaller last batch is left out.

    An epoch's order, drawn from (seed, epoch), is sorted by length within pools of POOL batches, and the
    batches are shuffled. `batch_size` is global, and its pairs go to the ranks in turn.
    """

    def __init__(
        self,
        make_batch: BatchFunction[PairBatch],
        source_length: np.ndarray,
        target_length: np.ndarray,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_divides("data.batch_size", batch_size, world_size)
        if batch_size > len(source_length):
            raise UserError(f"data.batch_size={batch_size} is larger than the {len(source_length)} training pairs")
        super().__init__(len(source_length) // batch_size)
        self._make_batch = make_batch
        self._rows = slice(rank, None, world_size)
        self._plan = lru_cache(maxsize=1)(partial(plan_batches, source_length, target_length, batch_size, seed))

    def batch(self, epoch: int, index: int) -> PairBatch:
        """Return this rank's pairs of batch `index` of epoch `epoch`."""
        return self._make_batch(self._plan(epoch)[index], self._rows)


def plan_batches(
    source_length: np.ndarray, target_length: np.ndarray, batch_size: int, seed: int, epoch: int
) -> np.ndarray:
    """Return the pairs of each batch of an epoch, (number of batches, batch_size) int64."""
    rng = np.random.default_rng([seed, epoch])
    num_batches = len(source_length) // batch_size
    order = rng.permutation(len(source_length))[: num_batches * batch_size]
    pool = np.arange(len(order)) // (POOL * batch_size)
    # the target's length comes first, because padding costs most in the softmax over the target vocabulary
    order = order[np.lexsort((source_length[order], target_length[order], pool))]
    return rng.permutation(order.reshape(num_batches, batch_size))
