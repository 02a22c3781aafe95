"""Batches of images made on the model's device: the pixels stay there, and a batch takes a few kernels.

Everything random in an epoch is one `Plan`, addressed by global position. So a batch is a pure function of
(seed, epoch, index): it depends neither on earlier batches nor on the number of ranks.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leyden.batch import ImageBatch
from leyden.data.images.augmentation import Augmentation, Plan, draw_plan
from leyden.data.loader import Loader, check_divides, eval_shares
from leyden.errors import UserError
from leyden.preparation.pictures import normalise, scaling


class ImageStore:
    """uint8 images on one device, padded and mirrored beforehand so that any crop of them is one gather.

    It takes N·C·(H+2·crop)·(W+2·crop) bytes, twice as many with `mirror`. `mean` and `std` have one value or one per
    channel, for pixels scaled to 0..1.
    """

    def __init__(
        self,
        images: Tensor,  # (N, C, H, W) uint8
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        *,
        crop: int = 0,
        crop_mode: Literal["zero", "reflect"] = "zero",
        mirror: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.size, _, self.height, self.width = images.shape
        self.device = device
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._scale, self._shift = (torch.from_numpy(part).to(device) for part in scaling(mean, std))
        self._images: Tensor | None = None  # (N, C, H, W), or None if images are cropped or mirrored
        self._windows: Tensor | None = None  # (N, mirror, top, left, C, H, W): a view of every crop
        if not crop and not mirror:
            self._images = images.to(device)
        else:
            border = ((0, 0), (0, 0), (crop, crop), (crop, crop))
            padded = np.pad(images.numpy(), border, mode="reflect" if crop_mode == "reflect" else "constant")
            padded = np.stack([padded, padded[..., ::-1]], axis=1) if mirror else padded[:, None]
            windows = torch.from_numpy(padded).to(device).unfold(3, self.height, 1).unfold(4, self.width, 1)
            self._windows = windows.permute(0, 1, 3, 4, 2, 5, 6)

    def take(self, rows: slice) -> Tensor:
        """Return the images `rows`, normalised: (B, C, H, W) float."""
        assert self._images is not None, "images that are cropped at random cannot be taken whole"
        return self._normalise(self._images[rows])

    def gather(self, index: Tensor, mirror: Tensor | None, top: Tensor | None, left: Tensor | None) -> Tensor:
        """Return the images `index`, mirrored, cropped and normalised: (B, C, H, W) float."""
        if self._images is not None:
            return self._normalise(self._images.index_select(0, index))
        assert self._windows is not None
        zero = torch.zeros_like(index)
        window = tuple(zero if part is None else part for part in (mirror, top, left))
        if self.device.type == "cpu":  # numpy copies whole rows here; torch copies single bytes, 4 times slower
            windows = self._windows.numpy()
            pixels = torch.from_numpy(windows[(index.numpy(), *(part.numpy() for part in window))])
        else:
            pixels = self._windows[(index, *window)]
        return self._normalise(pixels)

    def _normalise(self, pixels: Tensor) -> Tensor:
        return normalise(pixels.to(torch.float32, memory_format=self._layout), self._scale, self._shift)


class ImageTrainLoader(Loader[ImageBatch]):
    """Loads shuffled, augmented batches; rank `rank` of `world_size` gets its slice of each batch.

    With `probabilities` (N,), examples are drawn by them, with replacement. `batch_size` is global. Labels are (B,)
    int64, or (B, K) class weights after mixup or cutmix. Float labels (B, …) are not classes, and are mixed directly.
    """

    def __init__(
        self,
        images: Tensor,  # (N, C, H, W) uint8
        labels: Tensor,  # (N,) int64, or (N, …) float
        *,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        batch_size: int,
        seed: int = 0,
        probabilities: np.ndarray | None = None,
        augmentation: Augmentation | None = None,
        drop_last: bool = True,
        channels_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        check_divides("data.batch_size", batch_size, world_size)
        size = len(images)
        if batch_size > size:
            raise UserError(f"data.batch_size={batch_size} is larger than the {size} training examples: lower it")
        if not drop_last and size % batch_size % world_size:
            rest = f"a last batch of {size % batch_size} examples, which {world_size} ranks cannot share equally"
            raise UserError(f"data.drop_last=false leaves {rest}: set data.drop_last=true")
        super().__init__(size // batch_size if drop_last else -(-size // batch_size))
        self._augmentation = augmentation = augmentation or Augmentation()
        self._device = device or torch.device("cpu")
        crops: dict[str, Any] = {"crop": augmentation.crop, "crop_mode": augmentation.crop_mode}
        layout = {"mirror": augmentation.flip, "channels_last": channels_last}
        self._store = ImageStore(images, mean, std, self._device, **crops, **layout)
        self._labels = labels.to(self._device)
        self._num_classes = num_classes
        self._batch_size = batch_size
        self._seed, self._probabilities = seed, probabilities
        self._rank, self._world_size = rank, world_size
        self._plan = lru_cache(maxsize=1)(self._draw_plan)

    def batch(self, epoch: int, index: int) -> ImageBatch:
        """Return this rank's slice of batch `index` of epoch `epoch`."""
        plan = self._plan(epoch)
        first = index * self._batch_size
        share = min(self._batch_size, self._store.size - first) // self._world_size
        rows = slice(first + self._rank * share, first + (self._rank + 1) * share)
        image, label = self._examples(plan, rows)
        if plan.partner is None or plan.share is None:
            return ImageBatch(image, label)
        partner, partner_label = self._examples(plan, plan.partner[rows])
        weight = plan.share[rows]  # (B,)
        if plan.cutmix is None:
            image = torch.lerp(partner, image, weight[:, None, None, None])
        else:
            image = torch.where(self._box_mask(plan.cutmix[rows]), partner, image)
        if not label.is_floating_point():
            partner_label, label = (F.one_hot(y, self._num_classes).to(image.dtype) for y in (partner_label, label))
        weight = weight.view(-1, *[1] * (label.ndim - 1))
        return ImageBatch(image, torch.lerp(partner_label, label, weight))  # (B, C, H, W), (B, K)

    def _draw_plan(self, epoch: int) -> Plan:
        size, height, width = self._store.size, self._store.height, self._store.width
        random = (self._seed, epoch, self._augmentation, self._probabilities)
        plan = draw_plan(size, height, width, self._batch_size, *random)
        return Plan(*(None if part is None else part.to(self._device) for part in plan))

    def _examples(self, plan: Plan, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        index, mirror, top, left, cutout = (None if part is None else part[rows] for part in plan[:5])
        assert index is not None
        image = self._store.gather(index, mirror, top, left)
        if cutout is not None:
            image.masked_fill_(self._box_mask(cutout), 0.0)
        return image, self._labels[index]

    def _box_mask(self, boxes: Tensor) -> Tensor:
        """Return a mask (B, 1, H, W) of the pixels inside the boxes (B, 4)."""
        top, bottom, left, right = boxes[:, :, None].unbind(1)  # (B, 1) each
        y = torch.arange(self._store.height, device=self._device)
        x = torch.arange(self._store.width, device=self._device)
        rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)  # (B, H), (B, W)
        return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


class ImageEvalLoader(Loader[ImageBatch]):
    """Loads every example once, in order and unchanged; `batch_size` is global, and the ranks share each batch."""

    def __init__(
        self,
        images: Tensor,  # (N, C, H, W) uint8
        labels: Tensor,  # (N,) int64
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        channels_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        shares = eval_shares(len(images), batch_size, rank, world_size)
        self._rows = [slice(batch.start + rows.start, batch.start + rows.stop) for batch, rows in shares]
        super().__init__(len(self._rows))
        device = device or torch.device("cpu")
        self._store = ImageStore(images, mean, std, device, channels_last=channels_last)
        self._labels = labels.to(device)

    def batch(self, epoch: int, index: int) -> ImageBatch:
        """Return this rank's share of batch `index`, the same in every epoch."""
        rows = self._rows[index]
        return ImageBatch(self._store.take(rows), self._labels[rows])
