"""Batches of images made where the model trains: the pixels stay on its device, and a batch is a few kernels.

Everything random of an epoch is one plan, drawn at once from (seed, epoch) and addressed by global position.
So the batch at (seed, epoch, index) is a pure function: of no history, and of no number of ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from leyden.batch import ImageBatch
from leyden.data.loader import Loader, check_divides, eval_shares
from leyden.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """What happens to training images: mirror, crop, normalise, cut out, then mix with another of the batch.

    `crop` pixels of padding on each side, of which a window of the image's own size is cut at random.
    `cutout` is the side of a square set to the mean (DeVries & Taylor 2017), clipped at the borders.
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
    """Everything random of one epoch, by global position `(N,)`; None where the augmentation is off."""

    index: Tensor  # the example
    mirror: Tensor | None  # 0 or 1
    top: Tensor | None  # of the crop's window in the padded image
    left: Tensor | None
    cutout: Tensor | None  # (N, 4) box: top, bottom, left, right
    partner: Tensor | None  # global position in the same global batch
    share: Tensor | None  # weight of the example's own label; its partner has the rest
    cutmix: Tensor | None  # (N, 4) box that shows the partner


def draw_plan(
    size: int, height: int, width: int, batch_size: int, seed: int, epoch: int, augmentation: Augmentation
) -> Plan:
    """Draw the epoch's order and augmentation of `size` examples, which is all the randomness there is."""
    rng = np.random.default_rng([seed, epoch])
    index = rng.permutation(size)
    mirror = top = left = cutout = partner = share = cutmix = None
    if augmentation.flip:
        mirror = rng.integers(2, size=size)
    if augmentation.crop:
        top, left = rng.integers(2 * augmentation.crop + 1, size=(2, size))
    if augmentation.cutout:
        side = np.full(size, augmentation.cutout)
        cutout = _boxes(rng.integers(height, size=size), rng.integers(width, size=size), side, side)
    if augmentation.mixup or augmentation.cutmix:
        # Sorted by batch, then by a random key: a permutation within each global batch.
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
        share = 1 - area / (height * width)  # what is left after the borders clipped the box
    if share is not None:
        share = share.astype(np.float32)
    drawn = (index, mirror, top, left, cutout, partner, share, cutmix)
    return Plan(*(None if array is None else torch.from_numpy(array) for array in drawn))


def _boxes(y: np.ndarray, x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    top, left = y - rows // 2, x - columns // 2
    return np.stack([top, top + rows, left, left + columns], axis=1)


class ImageStore:
    """uint8 images on one device, padded and mirrored beforehand so that any crop of them is one gather.

    Takes N·C·(H+2·crop)·(W+2·crop) bytes, twice as many with `mirror`. `mean` and `std` are per channel and
    refer to pixels scaled to 0..1.
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
        deviation = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self._scale = (1 / (255 * deviation)).to(device)
        self._shift = (-torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1) / deviation).to(device)
        self._images: Tensor | None = None  # as they are, or
        self._windows: Tensor | None = None  # (N, mirror, top, left, C, H, W): every crop of them, a view
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
        assert self._images is not None, "what is cropped at random has no image of its own"
        return self._normalise(self._images[rows])

    def gather(self, index: Tensor, mirror: Tensor | None, top: Tensor | None, left: Tensor | None) -> Tensor:
        """Return the images `index`, mirrored, cropped and normalised: (B, C, H, W) float."""
        if self._images is not None:
            return self._normalise(self._images.index_select(0, index))
        assert self._windows is not None
        zero = torch.zeros_like(index)
        where = tuple(zero if part is None else part for part in (mirror, top, left))
        if self.device.type == "cpu":  # numpy copies whole rows here, torch single bytes: 4 times slower
            windows = self._windows.numpy()
            pixels = torch.from_numpy(windows[(index.numpy(), *(part.numpy() for part in where))])
        else:
            pixels = self._windows[(index, *where)]
        return self._normalise(pixels)

    def _normalise(self, pixels: Tensor) -> Tensor:
        image = pixels.to(torch.float32, memory_format=self._layout)
        return image.mul_(self._scale).add_(self._shift)


class TrainLoader(Loader[ImageBatch]):
    """Shuffled, augmented batches of an epoch; rank `rank` of `world_size` gets its slice of each.

    `batch_size` is global. Labels are (B,) int64, or (B, K) class weights after mixup or cutmix.
    """

    def __init__(
        self,
        images: Tensor,  # (N, C, H, W) uint8
        labels: Tensor,  # (N,) int64
        *,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        batch_size: int,
        seed: int = 0,
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
            raise UserError(f"data.batch_size={batch_size} is larger than the {size} training examples")
        if not drop_last and size % batch_size % world_size:
            raise UserError(
                f"data.drop_last=false leaves a last batch of {size % batch_size} examples, which "
                f"{world_size} ranks cannot share equally: set data.drop_last=true"
            )
        super().__init__(size // batch_size if drop_last else -(-size // batch_size))
        self._augmentation = augmentation or Augmentation()
        self._device = device or torch.device("cpu")
        self._store = ImageStore(
            images,
            mean,
            std,
            self._device,
            crop=self._augmentation.crop,
            crop_mode=self._augmentation.crop_mode,
            mirror=self._augmentation.flip,
            channels_last=channels_last,
        )
        self._labels = labels.to(self._device)
        self._num_classes = num_classes
        self._batch_size = batch_size
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._plan = lru_cache(maxsize=1)(self._draw)

    def batch(self, epoch: int, index: int) -> ImageBatch:
        """Return this rank's slice of batch `index` of epoch `epoch`."""
        plan = self._plan(epoch)
        first = index * self._batch_size
        share = min(self._batch_size, self._store.size - first) // self._world_size
        rows = slice(first + self._rank * share, first + (self._rank + 1) * share)
        image, label = self._examples(plan, rows)
        if plan.partner is None or plan.share is None:
            return ImageBatch(image, label)
        other, other_label = self._examples(plan, plan.partner[rows])
        weight = plan.share[rows]  # (B,)
        if plan.cutmix is None:
            image = torch.lerp(other, image, weight[:, None, None, None])
        else:
            image = torch.where(self._inside(plan.cutmix[rows]), other, image)
        one_hot = [F.one_hot(y, self._num_classes).to(image.dtype) for y in (other_label, label)]
        return ImageBatch(image, torch.lerp(*one_hot, weight[:, None]))  # (B, C, H, W), (B, K)

    def _draw(self, epoch: int) -> Plan:
        size, height, width = self._store.size, self._store.height, self._store.width
        plan = draw_plan(size, height, width, self._batch_size, self._seed, epoch, self._augmentation)
        return Plan(*(None if part is None else part.to(self._device) for part in plan))

    def _examples(self, plan: Plan, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        index, mirror, top, left, cutout = (None if part is None else part[rows] for part in plan[:5])
        assert index is not None
        image = self._store.gather(index, mirror, top, left)
        if cutout is not None:
            image.masked_fill_(self._inside(cutout), 0.0)
        return image, self._labels[index]

    def _inside(self, boxes: Tensor) -> Tensor:
        """Return (B, 1, H, W): which pixels lie in the boxes (B, 4)."""
        top, bottom, left, right = boxes[:, :, None].unbind(1)  # (B, 1) each
        y = torch.arange(self._store.height, device=self._device)
        x = torch.arange(self._store.width, device=self._device)
        rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)  # (B, H), (B, W)
        return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)


class EvalLoader(Loader[ImageBatch]):
    """Every example once, in order and unchanged; the ranks share each batch, of `batch_size` in all."""

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
        self._rows = [slice(whole.start + rows.start, whole.start + rows.stop) for whole, rows in shares]
        super().__init__(len(self._rows))
        device = device or torch.device("cpu")
        self._store = ImageStore(images, mean, std, device, channels_last=channels_last)
        self._labels = labels.to(device)

    def batch(self, epoch: int, index: int) -> ImageBatch:
        """Return this rank's share of batch `index`, the same in every epoch."""
        rows = self._rows[index]
        return ImageBatch(self._store.take(rows), self._labels[rows])
