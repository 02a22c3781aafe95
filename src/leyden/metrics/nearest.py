"""The nearest training examples of samples, which show what a model has memorized."""

from collections.abc import Iterable

import torch
from torch import Tensor

EXACT = "donot_use_mm_for_euclid_dist"  # with matrix products, the distance of a copy would not be 0


def nearest(query: Tensor, batches: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` nearest of all examples (B, …) to each `query` (N, …): (N, k, …), and their distances (N, k).

    Distances are Euclidean, and the smallest comes first.
    """
    neighbours = query.new_empty(len(query), 0, *query.shape[1:])
    distances = query.new_empty(len(query), 0)
    for batch in batches:
        batch_distances, index = torch.cdist(query.flatten(1), batch.flatten(1), compute_mode=EXACT).topk(
            min(k, len(batch)), largest=False
        )
        distances, order = torch.cat([distances, batch_distances], 1).sort(dim=1, stable=True)
        rows = torch.arange(len(query), device=query.device)[:, None]
        neighbours = torch.cat([neighbours, batch[index]], 1)[rows, order[:, :k]]
        distances = distances[:, :k]
    return neighbours, distances
