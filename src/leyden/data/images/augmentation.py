"""The random order and augmentation of an epoch of images, drawn at once from (seed, epoch)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from leyden.data.sampling import draw_order
from leyden.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images: mirrored, cropped, normalised, cut out, then mixed within their batch.

    `crop` pixels of padding are added on each side, and a window as large as the image is cropped at random.
    `cutout` is the side of a square that is set to the mean (DeVries & Taylor 2017), clipped at the borders.
    `mixup` (Zhang et al. 2018, eq. 1) and `cutmix` (Yun et al. 2019, eq. 1-2) are the alpha of their
    Beta(alpha, alpha), drawn for each sample; they turn labels into class weights `(B, K)`, and exclude
    each other. Zero switches an augmentation off.
    """

    crop: int = 0
    crop_mode: Literal["zero", "reflect"] = "zero"
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.mixup and self.cutmix:
            raise UserError(f"data.mixup={self.mixup} and data.cutmix={self.cutmix} exclude each other: set one to 0")


class Plan(NamedTuple):
    """The random numbers of one epoch, by global position `(N,)`; None if the augmentation is off."""

    index: Tensor  # index of the example
    mirror: Tensor | None  # 0 or 1
    top: Tensor | None  # top and left of the crop in the padded image
    left: Tensor | None
    cutout: Tensor | None  # (N, 4) box: top, bottom, left, right
    partner: Tensor | None  # global position in the same global batch
    share: Tensor | None  # weight of the example itself; its partner has the remaining weight
    cutmix: Tensor | None  # (N, 4) box that shows the partner


def draw_plan(
    size: int,
    height: int,
    width: int,
    batch_size: int,
    seed: int,
    epoch: int,
    augmentation: Augmentation,
    probabilities: np.ndarray | None = None,
) -> Plan:
    """Draw the order and the augmentation of `size` examples in an epoch; nothing else is random.

    With `probabilities` (N,), examples are drawn by them, with replacement.
    """
    rng = np.random.default_rng([seed, epoch])
    index = draw_order(rng, size, probabilities)
    mirror = top = left = cutout = partner = share = cutmix = None
    if augmentation.flip:
        mirror = rng.integers(2, size=size)
    if augmentation.crop:
        top, left = rng.integers(2 * augmentation.crop + 1, size=(2, size))
    if augmentation.cutout:
        side = np.full(size, augmentation.cutout)
        cutout = _boxes(rng.integers(height, size=size), rng.integers(width, size=size), side, side)
    if augmentation.mixup or augmentation.cutmix:
        # Sorting by batch, then by a random key, permutes the positions within each global batch.
        partner = np.lexsort((rng.random(size), np.arange(size) // batch_size))
        alpha = augmentation.mixup or augmentation.cutmix
        share = rng.beta(alpha, alpha, size)
    if augmentation.cutmix:
        scale = np.sqrt(1 - share)
        rows, columns = (height * scale).astype(int), (width * scale).astype(int)
        cutmix = _boxes(rng.integers(height, size=size), rng.integers(width, size=size), rows, columns)
        cutmix[:, :2] = cutmix[:, :2].clip(0, height)
        cutmix[:, 2:] = cutmix[:, 2:].clip(0, width)
        area = (cutmix[:, 1] - cutmix[:, 0]) * (cutmix[:, 3] - cutmix[:, 2])
        share = 1 - area / (height * width)  # the borders may have clipped the box
    if share is not None:
        share = share.astype(np.float32)
    arrays = (index, mirror, top, left, cutout, partner, share, cutmix)
    return Plan(*(None if array is None else torch.from_numpy(array) for array in arrays))


def _boxes(y: np.ndarray, x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    top, left = y - rows // 2, x - columns // 2
    return np.stack([top, top + rows, left, left + columns], axis=1)
