"""Base of the image data sets: labelled images that fit in memory, split and served in batches."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from leyden.batch import NO_TARGET, ImageBatch
from leyden.data.images.loader import Augmentation, EvalLoader, ImageStore, TrainLoader
from leyden.data.loader import place
from leyden.data.images.pictures import read_array, read_picture
from leyden.data.split import Fold, Folds, Size, Split, set_aside
from leyden.errors import UserError


class Images(LightningDataModule):
    """Base of the image data sets. A subclass says how to `read()` its files, and `names` the classes.

    `num_classes` and `image_shape` (C, H, W) are what the files must hold. `mean` and `std` normalise pixels scaled
    to 0..1, with one value or one per channel. `batch_size` and `eval_batch_size` (default: the same) count over all
    ranks. `val_size` of the training examples, as a count or fraction, are for validation, or in a cross-validation
    the part `fold` (from 0) of `folds`: chosen by `split_seed`, never by the run's `seed`, with every class in
    proportion if `stratify`. Examples that `read()` gives one group are never parted. `limit` trains on that many of
    the rest; a smaller limit is a part of a larger one. The augmentation of training images is that of
    `leyden.data.images.loader.Augmentation`.
    """

    names: ClassVar[tuple[str, ...]] = ()  # of the classes

    def __init__(
        self,
        num_classes: PositiveInt,
        image_shape: tuple[PositiveInt, PositiveInt, PositiveInt],
        batch_size: PositiveInt = 128,
        eval_batch_size: PositiveInt | None = None,
        mean: float | list[float] = 0.5,
        std: PositiveFloat | list[PositiveFloat] = 0.5,
        val_size: Size = 0.1,
        split_seed: NonNegativeInt = 0,
        stratify: bool = True,
        folds: Folds | None = None,
        fold: NonNegativeInt | None = None,
        limit: PositiveInt | None = None,
        crop: NonNegativeInt = 0,
        crop_mode: Literal["zero", "reflect"] = "zero",
        flip: bool = False,
        cutout: NonNegativeInt = 0,
        mixup: NonNegativeFloat = 0.0,
        cutmix: NonNegativeFloat = 0.0,
        drop_last: bool = True,
        channels_last: bool = False,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.image_shape = tuple(image_shape)  # (C, H, W)
        self.mean, self.std = self._per_channel("mean", mean), self._per_channel("std", std)
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size or batch_size
        self._held_out = Fold.chosen(folds, fold) or val_size
        self._split_seed, self._stratify, self._limit = split_seed, stratify, limit
        self._augmentation = Augmentation(crop, crop_mode, flip, cutout, mixup, cutmix)
        self._drop_last, self._channels_last, self._seed = drop_last, channels_last, seed
        self._splits: dict[str, Split] = {}

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        return list(self.names)

    def read(self) -> tuple[Split, Split]:
        """Read the training and test examples from their files."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the files and split them, once."""
        if self._splits:
            return
        train, test = self.read()
        labels = np.concatenate([train.labels, test.labels])
        stated = (self.num_classes, list(self.image_shape))
        found = (int(labels.max()) + 1, list(train.images.shape[1:]))
        if stated != found:
            raise UserError(f"data.(num_classes, image_shape) is {stated}, but the files hold {found}")
        how = {"seed": self._split_seed, "stratify": self._stratify, "groups": train.groups}
        val, rest = set_aside("data.val_size", self._held_out, train.labels, **how)
        if self._limit is not None and self._limit > len(rest):
            raise UserError(f"data.limit={self._limit} is larger than the {len(rest)} training examples")
        owned = Split(test.images.copy(), test.labels.copy())  # torch warns about arrays that cannot be written
        self._splits = {"train": train.take(rest[: self._limit]), "val": train.take(val), "test": owned}

    def fingerprint(self) -> dict[str, dict]:
        """Return the size and sha256 (over images, then labels) of each split, which `setup` made."""
        prints = {}
        for name, split in self._splits.items():
            digest = hashlib.sha256(np.ascontiguousarray(split.images))
            digest.update(np.ascontiguousarray(split.labels))
            prints[name] = {"size": len(split.labels), "sha256": digest.hexdigest()}
        return prints

    def train_dataloader(self) -> TrainLoader:
        """Return the shuffled, augmented batches."""
        device, ranks = place(self.trainer)
        return TrainLoader(
            **self._served("train", device),
            **ranks,
            num_classes=self.num_classes,
            batch_size=self._batch_size,
            seed=self._seed,
            augmentation=self._augmentation,
            drop_last=self._drop_last,
        )

    def val_dataloader(self) -> EvalLoader:
        """Return the validation examples in order."""
        return self._eval_loader("val", *place(self.trainer))

    def test_dataloader(self) -> EvalLoader:
        """Return the test examples in order."""
        return self._eval_loader("test", *place(self.trainer))

    def predict_dataloader(self) -> EvalLoader:
        """Return the test examples in order."""
        return self.test_dataloader()

    def examples(self, split: str) -> EvalLoader:
        """Return all examples of a split, `train`, `val` or `test`, in order and unchanged, whatever rank this is."""
        return self._eval_loader(split, place(self.trainer)[0], {})

    def load_images(self, paths: Sequence[str | Path]) -> Tensor:
        """Load pictures, or .npy files of uint8 pixels, as batches hold them: (N, C, H, W) float, normalised.

        Pictures are converted to this data's mode and size. Arrays must have its shape already: (C, H, W),
        (N, C, H, W), or (H, W) where there is one channel.
        """
        images = [self._pixels(Path(path)) for path in paths]
        if not images:
            raise UserError("there are no files to load: name one or more pictures or .npy files")
        pixels = torch.from_numpy(np.concatenate(images))
        store = ImageStore(pixels, self.mean, self.std, torch.device("cpu"), channels_last=self._channels_last)
        return store.take(slice(None))

    def load_files(self, paths: Sequence[Path]) -> Iterator[tuple[list[str], ImageBatch]]:
        """Load pictures and .npy files as `load_images` does: a batch for each file, with the names of its rows."""
        for path in paths:
            image = self.load_images([path])  # (N, C, H, W); N > 1 in some .npy files
            names = [str(path)] if len(image) == 1 else [f"{path}[{i}]" for i in range(len(image))]
            yield names, ImageBatch(image, torch.full((len(image),), NO_TARGET))

    def _pixels(self, path: Path) -> np.ndarray:
        return read_array(path, self.image_shape) if path.suffix == ".npy" else self._picture(path)[None]

    def _picture(self, path: Path) -> np.ndarray:
        """Decode one picture as this data set does: (C, H, W) uint8."""
        return read_picture(path, self.image_shape)

    def _eval_loader(self, name: str, device: torch.device, ranks: dict[str, int]) -> EvalLoader:
        return EvalLoader(**self._served(name, device), batch_size=self._eval_batch_size, **ranks)

    def _served(self, name: str, device: torch.device) -> dict[str, Any]:
        """What every loader takes: a split, where it is to be, and how it is normalised."""
        images, labels = map(torch.from_numpy, self._splits[name][:2])
        layout = {"channels_last": self._channels_last}
        return {"images": images, "labels": labels, "mean": self.mean, "std": self.std, "device": device, **layout}

    def _per_channel(self, key: str, value: float | list[float]) -> list[float]:
        channels = self.image_shape[0]
        values = [float(value)] if isinstance(value, int | float) else [float(v) for v in value]
        if len(values) not in (1, channels):
            raise UserError(f"data.{key} has {len(values)} values, but the images have {channels} channels")
        return values
