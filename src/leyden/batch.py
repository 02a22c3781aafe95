"""What models and data share: the batch types."""

from typing import NamedTuple

from torch import Tensor


class ImageBatch(NamedTuple):
    """Images with one label each."""

    image: Tensor  # (B, C, H, W) float, normalised
    label: Tensor  # (B,) int64 class index, or (B, K) float class weights after mixup or cutmix
