"""Labelled images that fit in memory: the base data module, and the data sets on it."""

import csv
import gzip
import hashlib
import io
import logging
import os
import struct
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from PIL import Image, ImageOps
from pydantic import (
    DirectoryPath,
    Field,
    FilePath,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from torch import Tensor

from leyden.data.download import Remote, download
from leyden.data.loader import Augmentation, EvalLoader, ImageStore, TrainLoader
from leyden.errors import UserError

log = logging.getLogger(__name__)

Size = PositiveInt | Annotated[float, Field(gt=0, lt=1)]  # a count of examples, or a fraction of them
MODES = {1: "L", 3: "RGB"}


class Split(NamedTuple):
    """Examples as they lie in memory."""

    images: np.ndarray  # (N, C, H, W) uint8
    labels: np.ndarray  # (N,) int64


class Images(LightningDataModule):
    """Base of the image data sets. A subclass says how to `read()` its files, and `names` the classes.

    `num_classes` and `image_shape` (C, H, W) are what the files must hold. `mean` and `std` normalise
    pixels scaled to 0..1, with one value or one per channel. `batch_size` and `eval_batch_size` (default:
    the same) count over all ranks. `val_size` of the training examples, as a count or fraction, are for
    validation: chosen by `split_seed`, never by the run's `seed`, and with every class in proportion if
    `stratify`. `limit` trains on that many of the rest; a smaller limit is a part of a larger one. The
    augmentation of training images is that of `leyden.data.loader.Augmentation`. Files lie in
    `data_dir`/`folder`, by default in $LEYDEN_DATA or ~/.cache/leyden.
    """

    folder: ClassVar[str] = ""
    remotes: ClassVar[tuple[Remote, ...]] = ()
    installed: ClassVar[tuple[Path, ...]] = ()  # folders where a system package puts the same files
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
        data_dir: DirectoryPath | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.image_shape = tuple(image_shape)  # (C, H, W)
        self.mean, self.std = self._per_channel("mean", mean), self._per_channel("std", std)
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size or batch_size
        self._val_size, self._split_seed, self._stratify, self._limit = val_size, split_seed, stratify, limit
        self._augmentation = Augmentation(crop, crop_mode, flip, cutout, mixup, cutmix)
        self._drop_last, self._channels_last, self._seed = drop_last, channels_last, seed
        self._data_dir = data_dir
        self._splits: dict[str, Split] = {}
        self._resample: str = "bilinear"
        self._fit: str = "stretch"

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        return list(self.names)

    def read(self) -> tuple[Split, Split]:
        """Read the training and test examples from their files."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process of each node."""
        for remote in self.remotes:
            if self._find(remote) is None:
                download(remote, self._root() / self.folder / remote.name)

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
        order = _split_order(train.labels, self._split_seed, self._stratify)
        num_val = _count("data.val_size", self._val_size, len(order))
        num_train = len(order) - num_val
        if self._limit is not None and self._limit > num_train:
            raise UserError(f"data.limit={self._limit} is larger than the {num_train} training examples")
        val, rest = order[:num_val], order[num_val:][: self._limit]
        self._splits = {"train": _select(train, rest), "val": _select(train, val)}
        self._splits["test"] = _select(test, np.arange(len(test.labels)))

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
        split = self._splits["train"]
        return TrainLoader(
            torch.from_numpy(split.images),
            torch.from_numpy(split.labels),
            mean=self.mean,
            std=self.std,
            num_classes=self.num_classes,
            batch_size=self._batch_size,
            seed=self._seed,
            augmentation=self._augmentation,
            drop_last=self._drop_last,
            channels_last=self._channels_last,
            **self._place(),
        )

    def val_dataloader(self) -> EvalLoader:
        """Return the validation examples in order."""
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        """Return the test examples in order."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader:
        """Return the test examples in order."""
        return self._eval_loader("test")

    def load_images(self, paths: Sequence[str | Path]) -> Tensor:
        """Load pictures, or .npy files of uint8 pixels, as batches hold them: (N, C, H, W) float, normalised.

        Pictures are converted to this data's mode and size. Arrays must have its shape already: (C, H, W),
        (N, C, H, W), or (H, W) where there is one channel.
        """
        images = [self._array(Path(p)) if Path(p).suffix == ".npy" else self._picture(Path(p))[None] for p in paths]
        if not images:
            raise UserError("there are no files to load: name one or more pictures or .npy files")
        pixels = torch.from_numpy(np.concatenate(images))
        store = ImageStore(pixels, self.mean, self.std, torch.device("cpu"), channels_last=self._channels_last)
        return store.take(slice(None))

    def _eval_loader(self, name: str) -> EvalLoader:
        split = self._splits[name]
        return EvalLoader(
            torch.from_numpy(split.images),
            torch.from_numpy(split.labels),
            mean=self.mean,
            std=self.std,
            batch_size=self._eval_batch_size,
            channels_last=self._channels_last,
            **self._place(),
        )

    def _place(self) -> dict[str, Any]:
        """Where batches are made: the trainer's device and this process's rank; without a trainer, here."""
        if self.trainer is None:
            return {"rank": 0, "world_size": 1, "device": torch.device("cpu")}
        trainer = self.trainer
        return {
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "device": trainer.strategy.root_device,
        }

    def _per_channel(self, key: str, value: float | list[float]) -> list[float]:
        channels = self.image_shape[0]
        values = [float(value)] if isinstance(value, int | float) else [float(v) for v in value]
        if len(values) not in (1, channels):
            raise UserError(f"data.{key} has {len(values)} values, but the images have {channels} channels")
        return values

    def _root(self) -> Path:
        """The folder of all data: the one given, which must exist, or the default."""
        if self._data_dir is None:
            return Path(os.environ.get("LEYDEN_DATA") or "~/.cache/leyden").expanduser()
        root = Path(self._data_dir).expanduser()
        if not root.is_dir():
            raise UserError(f"data.data_dir={self._data_dir} is not a folder: create it or name another")
        return root

    def _find(self, remote: Remote) -> Path | None:
        folders = (self._root() / self.folder, *self.installed)
        return next((folder / remote.name for folder in folders if (folder / remote.name).is_file()), None)

    def _content(self, remote: Remote) -> bytes:
        """Return what the file holds, proved by its digest."""
        path = self._find(remote)
        if path is None:
            raise UserError(
                f"{self._root() / self.folder / remote.name} does not exist: call prepare_data(), "
                "or put the file there by hand"
            )
        return remote.read(path)

    def _picture(self, path: Path) -> np.ndarray:
        """Decode one picture to this data's mode and size: (C, H, W) uint8."""
        channels, height, width = self.image_shape
        if channels not in MODES:
            raise UserError(f"data.image_shape={list(self.image_shape)} has {channels} channels; pictures have 1 or 3")
        try:
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file).convert(MODES[channels])
        except FileNotFoundError:
            raise UserError(f"{path} does not exist") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{path} is not a picture that can be read ({error})") from None
        if picture.size != (width, height):
            resample = Image.Resampling[self._resample.upper()]
            if self._fit == "crop":
                picture = ImageOps.fit(picture, (width, height), resample)
            else:
                picture = picture.resize((width, height), resample)
        return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)

    def _array(self, path: Path) -> np.ndarray:
        """Read a .npy file of pixels: (N, C, H, W) uint8."""
        try:
            array = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"{path} does not exist") from None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is not an array that can be read ({error})") from None
        if array.dtype != np.uint8:
            raise UserError(f"{path} holds {array.dtype}; save pixels as uint8, 0 to 255")
        shape = array.shape
        if array.ndim == 2 and self.image_shape[0] == 1:
            array = array[None]
        if array.ndim == 3:
            array = array[None]
        if array.ndim != 4 or array.shape[1:] != self.image_shape:
            raise UserError(f"{path} holds an array {list(shape)}; the images here are {list(self.image_shape)}")
        return array
