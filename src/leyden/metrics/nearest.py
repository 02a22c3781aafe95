"""The nearest examples: what a model may have learned by heart."""

from collections.abc import Iterable

import torch
from torch import Tensor

EXACT = "donot_use_mm_for_euclid_dist"  # by matrix products, a copy would not be at distance 0


def nearest(query: Tensor, batches: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Find for each of `query` (N, …) the `k` nearest in batches (B, …): (N, k, …) and their distances (N, k).

    Distances are Euclidean, the smallest first.
    """
    found = query.new_empty(len(query), 0, *query.shape[1:])
    distances = query.new_empty(len(query), 0)
    for batch in batches:
        here, index = torch.cdist(query.flatten(1), batch.flatten(1), compute_mode=EXACT).topk(
            min(k, len(batch)), largest=False
        )
        distances, order = torch.cat([distances, here], 1).sort(dim=1, stable=True)
        rows = torch.arange(len(query), device=query.device)[:, None]
        found = torch.cat([found, batch[index]], 1)[rows, order[:, :k]]
        distances = distances[:, :k]
    return found, distances
