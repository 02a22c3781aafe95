"""Generate pictures, each determined by a seed and its number alone, and draw figures of them.

Figures are pixels (H, W) or (H, W, 3), drawn from tensors (N, C, H, W) in [0, 1].
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from leyden.figures import mosaics

CHUNK = 100  # pictures that are generated at a time, even if fewer are needed
NUM_SHOWN = 64
PER_CLASS = 8
EXACT = "donot_use_mm_for_euclid_dist"  # matrix products would round, and the distance of a copy would not be 0
ROWS, STEPS = 8, 10  # rows and columns of the figures of interpolation and neighbours


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
    """Yield the pictures with the numbers `rows` in batches (B, C, H, W), of all classes in turn or of `label` alone.

    `forward` turns z (B, Z) and labels (B,) or None into pictures. Picture i is always made as row i % CHUNK of a batch
    of CHUNK pictures: in a batch of another size, or in another row, a kernel may round differently.
    """
    stop = max(rows.stop, rows.start + 1)  # even an empty range makes a batch, so that the result has the right shape
    starts = range(rows.start - rows.start % CHUNK, stop, CHUNK)
    shape = (starts[-1] + CHUNK, latent_dim)
    z = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32)).to(device)
    for start in starts:
        number = torch.arange(start, start + CHUNK, device=device)
        labels = None
        if num_classes:
            labels = number % num_classes if label is None else torch.full_like(number, label)
        yield forward(z[start : start + CHUNK], labels)[max(rows.start - start, 0) : rows.stop - start]


def interpolate(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Interpolate on the great circle from each `start` (R, Z) to its `end` (R, Z): (R * steps, Z), row after row.

    A straight line would pass near zero, where a Gaussian of many dimensions has no points (White 2016, section 2.1).
    """
    cosine = torch.cosine_similarity(start, end, dim=1).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = cosine.acos()[:, None, None]  # (R, 1, 1)
    t = torch.linspace(0, 1, steps, device=start.device)[:, None]  # (S, 1)
    start_weight, end_weight = (part.mul(angle).sin() / angle.sin() for part in (1 - t, t))  # (R, S, 1)
    return (start_weight * start[:, None] + end_weight * end[:, None]).flatten(0, 1)


def grid_size(num_classes: int | None) -> int:
    """Return the number of pictures, of all classes in turn, that `grid` takes."""
    return PER_CLASS * num_classes if num_classes and num_classes <= 16 else NUM_SHOWN


def grid(images: Tensor, num_classes: int | None, classes: Sequence[str] | None) -> np.ndarray:
    """Draw a grid of pictures, with a row for each class if there are few."""
    if num_classes is None or num_classes > 16:
        return mosaics.mosaic(_to_numpy(images))
    images_by_class = images.unflatten(0, (-1, num_classes)).transpose(0, 1).flatten(0, 1)
    names = classes or [str(k) for k in range(num_classes)]
    return mosaics.mosaic(_to_numpy(images_by_class), columns=len(images) // num_classes, names=names)


def real_and_generated(real: Tensor, generated: Tensor) -> np.ndarray:
    """Draw real and generated pictures side by side."""
    grids = {"real": mosaics.mosaic(_to_numpy(real)), "generated": mosaics.mosaic(_to_numpy(generated))}
    return mosaics.side_by_side(grids)


def interpolation(
    forward: Callable[..., Tensor], latent_dim: int, num_classes: int | None, device: torch.device
) -> np.ndarray:
    """Draw paths through latent space, one in each row; `forward` turns z (N, Z) and labels (N,) into pictures."""
    ends = np.random.default_rng(1).standard_normal((2, ROWS, latent_dim), np.float32)
    z = interpolate(*torch.from_numpy(ends).to(device), STEPS)
    row = torch.arange(len(z), device=device) // STEPS
    return mosaics.mosaic(_to_numpy(forward(z, row % num_classes if num_classes else None)), columns=STEPS)


def neighbours(samples: Tensor, real: Iterable[Tensor]) -> np.ndarray:
    """Draw samples beside the real pictures with the nearest pixels, to show whether the model memorised any."""
    closest, distances = nearest(samples[:ROWS], real, STEPS - 1)
    return mosaics.neighbours(_to_numpy(samples[:ROWS]), closest.cpu().numpy(), distances.cpu().numpy())


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


def _to_numpy(images: Tensor) -> np.ndarray:
    return images.float().cpu().numpy()
