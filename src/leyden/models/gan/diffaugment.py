"""DiffAugment (Zhao et al. 2020): random changes of real and fake images that gradients pass through.

The random numbers u (B, N), uniform in [0, 1), are arguments, with N from `num_numbers`, so that the changes of a
picture depend on nothing else. Every change is differentiable twice.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Change = Literal["color", "translation", "cutout"]

NUMBERS = {"color": 3, "translation": 2, "cutout": 2}


def num_numbers(policy: Sequence[Change]) -> int:
    """Return how many random numbers an image needs."""
    return sum(NUMBERS[change] for change in policy)


def augment(images: Tensor, policy: Sequence[Change], u: Tensor) -> Tensor:
    """Return the images (B, C, H, W) after the changes of `policy`, one after another, controlled by `u` (B, N)."""
    changes = {"color": _color, "translation": _translation, "cutout": _cutout}
    for change, numbers in zip(policy, u.split([NUMBERS[change] for change in policy], 1), strict=True):
        images = changes[change](images, numbers)
    return images


def _color(images: Tensor, u: Tensor) -> Tensor:
    """Change the brightness by -0.5 to 0.5, and scale the saturation by 0 to 2 and the contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = u.to(images.dtype)[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + 2 * saturation * (images - grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (0.5 + contrast) * (images - mean)


def _translation(images: Tensor, u: Tensor) -> Tensor:
    """Shift by up to an eighth of the height and the width; zeros fill the gap."""
    _, channels, height, width = images.shape
    max_down, max_right = (height + 4) // 8, (width + 4) // 8  # rounded, as the authors' code does
    rows = _to_int(u[:, :1], 2 * max_down + 1) + torch.arange(height, device=u.device)  # (B, H)
    columns = _to_int(u[:, 1:], 2 * max_right + 1) + torch.arange(width, device=u.device)  # (B, W)
    padded = F.pad(images, (max_right, max_right, max_down, max_down))
    shifted = padded.gather(2, rows[:, None, :, None].expand(-1, channels, -1, padded.shape[3]))
    return shifted.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    """Set a rectangle of half the height and half the width to zero; its centre is anywhere in the image."""
    rows, columns = (_span_mask(u[:, i], images.shape[2 + i]) for i in range(2))  # (B, H), (B, W)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _span_mask(u: Tensor, length: int) -> Tensor:
    """Return a mask (B, length) of the places that a span of half the length covers."""
    size = (length + 1) // 2
    first = _to_int(u[:, None], length + 1 - size % 2) - size // 2
    place = torch.arange(length, device=u.device)
    return (place >= first) & (place < first + size)


def _to_int(u: Tensor, count: int) -> Tensor:
    """Turn numbers in [0, 1) into integers from 0 to count - 1."""
    return (u * count).long()  # u * count rounds to less than count, for every u below 1
