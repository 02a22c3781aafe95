"""Figures of generated pictures: pixels (H, W) or (H, W, 3) from tensors (N, C, H, W) in [0, 1]."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from leyden.figures import mosaics
from leyden.metrics.nearest import nearest
from leyden.models.gan.latent import interpolate

NUM_SHOWN = 64
PER_CLASS = 8
ROWS, STEPS = 8, 10  # of an interpolation, and of nearest neighbours with one step less


def grid_size(num_classes: int | None) -> int:
    """Return the number of pictures, of all classes in turn, that `grid` takes."""
    return PER_CLASS * num_classes if num_classes and num_classes <= 16 else NUM_SHOWN


def grid(images: Tensor, num_classes: int | None, classes: Sequence[str] | None) -> np.ndarray:
    """Lay out pictures; of a few classes in turn, a row for each."""
    if num_classes is None or num_classes > 16:
        return mosaics.mosaic(_array(images))
    by_class = images.unflatten(0, (-1, num_classes)).transpose(0, 1).flatten(0, 1)
    names = classes or [str(k) for k in range(num_classes)]
    return mosaics.mosaic(_array(by_class), columns=len(images) // num_classes, names=names)


def real_and_generated(real: Tensor, generated: Tensor) -> np.ndarray:
    """Set real and generated pictures side by side."""
    return mosaics.beside({"real": mosaics.mosaic(_array(real)), "generated": mosaics.mosaic(_array(generated))})


def interpolation(
    forward: Callable[..., Tensor], latent_dim: int, num_classes: int | None, device: torch.device
) -> np.ndarray:
    """Draw paths through latent space, one in each row; `forward` turns z (N, Z) and labels (N,) into pictures."""
    ends = np.random.default_rng(1).standard_normal((2, ROWS, latent_dim), np.float32)
    z = interpolate(*torch.from_numpy(ends).to(device), STEPS)
    row = torch.arange(len(z), device=device) // STEPS
    return mosaics.mosaic(_array(forward(z, row % num_classes if num_classes else None)), columns=STEPS)


def neighbours(samples: Tensor, real: Iterable[Tensor]) -> np.ndarray:
    """Lay samples beside their nearest real pictures by pixels, which shows whether the model memorised any."""
    closest, distances = nearest(samples[:ROWS], real, STEPS - 1)
    return mosaics.neighbours(_array(samples[:ROWS]), closest.cpu().numpy(), distances.cpu().numpy())


def _array(images: Tensor) -> np.ndarray:
    return images.float().cpu().numpy()
