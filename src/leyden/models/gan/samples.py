"""Generated pictures, each a function of a seed and its number, however many are made and by however many ranks."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

CHUNK = 100  # pictures made at a time; asking for fewer costs as much, since the rest of a chunk is thrown away


@torch.no_grad()
def generate(
    forward: Callable[[Tensor, Tensor | None], Tensor],
    rows: range,
    latent_dim: int,
    device: torch.device,
    num_classes: int | None = None,
    label: int | None = None,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Yield the pictures number `rows` in batches (B, C, H, W), of all classes in turn or of `label` alone.

    `forward` turns z (B, Z) and labels (B,) or None into pictures. Picture i is always made as row i % CHUNK of a batch
    of CHUNK pictures: in a batch of another size, or in another row, a kernel may round differently.
    """
    stop = max(rows.stop, rows.start + 1)  # for an empty range one batch is made, so that the result has its shape
    starts = range(rows.start - rows.start % CHUNK, stop, CHUNK)
    shape = (starts[-1] + CHUNK, latent_dim)
    z = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32)).to(device)
    for start in starts:
        number = torch.arange(start, start + CHUNK, device=device)
        labels = None
        if num_classes:
            labels = number % num_classes if label is None else torch.full_like(number, label)
        image = forward(z[start : start + CHUNK], labels)
        yield image[max(rows.start - start, 0) : rows.stop - start]
