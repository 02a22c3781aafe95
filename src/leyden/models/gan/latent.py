"""Paths through latent space."""

import torch
from torch import Tensor


def interpolate(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Go from each `start` (R, Z) to its `end` (R, Z) on the great circle: (R * steps, Z), a row after the other.

    A straight line would pass near zero, where a Gaussian of many dimensions has no points (White 2016, section 2.1).
    """
    cosine = torch.cosine_similarity(start, end, dim=1).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = cosine.acos()[:, None, None]  # (R, 1, 1)
    t = torch.linspace(0, 1, steps, device=start.device)[:, None]  # (S, 1)
    of_start, of_end = (part.mul(angle).sin() / angle.sin() for part in (1 - t, t))  # (R, S, 1)
    return (of_start * start[:, None] + of_end * end[:, None]).flatten(0, 1)
