"""Bases of the image data sets: labelled images that fit in memory, and those whose files are downloaded."""

from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import DirectoryPath, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from leyden.batch import NO_TARGET, ImageBatch
from leyden.data.base import Data, check_facts, sha256
from leyden.data.download import Files, Remote
from leyden.data.images.augmentation import Augmentation
from leyden.data.images.loader import ImageEvalLoader, ImageTrainLoader
from leyden.data.loader import device_and_ranks
from leyden.data.sampling import Sampling, draw_probabilities
from leyden.data.split import Size
from leyden.data.targets import Targets
from leyden.errors import UserError
from leyden.schema.field import Arrays
from leyden.schema.images import Image, sketch
from leyden.schema.schema import Schema


class Split(NamedTuple):
    """Labelled images in memory."""

    images: np.ndarray  # (N, C, H, W) uint8
    labels: np.ndarray  # (N,) int64, or other targets of `leyden.data.targets`
    groups: np.ndarray | None = None  # (N,): examples of one group, such as a patient's, stay in the same part

    def take(self, index: np.ndarray) -> "Split":
        """Copy the examples `index`, in the order of the files."""
        index = np.sort(index)
        return Split(self.images[index], self.labels[index], None if self.groups is None else self.groups[index])


class Images(Data):
    """Base of the image data sets. A subclass defines how to `read()` its files, and the `names` of the classes.

    The files must hold `num_classes` classes and images of `image_shape` (C, H, W). `mean` and `std` normalise pixels
    scaled to 0..1, with one value or one per channel. `val_size` of the training examples, a count or a fraction, are
    for validation unless `folds` are set; `split_seed` chooses them, with every class in proportion if `stratify`.
    Examples that `read()` puts in one group always stay in the same part. `sampling` draws each training example once
    an epoch (`uniform`), or as many examples with replacement: all classes equally often (`balanced`), or in proportion
    to the square roots of their sizes (`sqrt`). `crop` to `cutmix` augment the training images as
    `leyden.data.images.augmentation.Augmentation` describes. `drop_last` leaves out the last batch of an epoch if it is
    smaller than the others. The other arguments are those of `Data`.
    """

    names: ClassVar[tuple[str, ...]] = ()  # names of the classes
    _targets = Targets()  # how labels are parsed

    def __init__(
        self,
        num_classes: PositiveInt,
        image_shape: tuple[PositiveInt, PositiveInt, PositiveInt],
        batch_size: PositiveInt = 128,
        mean: float | list[float] = 0.5,
        std: PositiveFloat | list[PositiveFloat] = 0.5,
        val_size: Size = 0.1,
        split_seed: NonNegativeInt = 0,
        stratify: bool = True,
        sampling: Sampling = "uniform",
        crop: NonNegativeInt = 0,
        crop_mode: Literal["zero", "reflect"] = "zero",
        flip: bool = False,
        cutout: NonNegativeInt = 0,
        mixup: NonNegativeFloat = 0.0,
        cutmix: NonNegativeFloat = 0.0,
        drop_last: bool = True,
        channels_last: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        self.num_classes = num_classes
        self.image_shape = tuple(image_shape)  # (C, H, W)
        self.mean, self.std = self._per_channel("mean", mean), self._per_channel("std", std)
        self._val_size, self._split_seed, self._stratify = val_size, split_seed, stratify
        self._sampling: Sampling = sampling
        self._augmentation = Augmentation(crop, crop_mode, flip, cutout, mixup, cutmix)
        self._drop_last, self._channels_last = drop_last, channels_last
        self._read_options: dict[str, Any] = {}  # arguments of `schema.images.Image`: how files are resized

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        return list(self.names)

    def read(self) -> tuple[Split, Split]:
        """Read the training and test examples from their files."""
        raise NotImplementedError

    def examples(self, split: str) -> ImageEvalLoader:
        """Return all examples of the split `train`, `val` or `test`, in order and unchanged, on any rank."""
        return self._eval_loader(split, device_and_ranks(self.trainer)[0], {})

    def to_batch(self, arrays: Arrays) -> ImageBatch:
        """Return a batch of pictures (B, C, H, W), without labels."""
        image = torch.from_numpy(arrays["image"])
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        return ImageBatch(image.contiguous(memory_format=layout), torch.full((len(image),), NO_TARGET))

    def _make_splits(self) -> dict[str, Split]:
        train, test = self.read()
        labels = np.concatenate([train.labels, test.labels])
        num_classes, shape = self._targets.count(labels), list(train.images.shape[1:])
        config = {"num_classes": self.num_classes, "image_shape": list(self.image_shape)}
        check_facts(config, {"num_classes": num_classes, "image_shape": shape})
        strata = self._targets.strata(train.labels)
        rows, val_rows = self._hold_out(self._val_size, strata, self._split_seed, self._stratify, train.groups)
        writable_test = Split(test.images.copy(), test.labels.copy())  # torch warns about read-only arrays
        return {"train": train.take(rows), "val": train.take(val_rows), "test": writable_test}

    def _make_schema(self) -> Schema:
        images, labels = self._splits["train"][:2]
        names = self.classes or [str(k) for k in range(self.num_classes)]
        pixels = {"shape": self.image_shape, "mean": self.mean, "std": self.std, "brightness": sketch(images)}
        return Schema(input=Image(**pixels, **self._read_options), answer=self._targets.field(labels, names))

    def _describe(self, split: Split) -> dict[str, Any]:
        return {"size": len(split.labels), "sha256": sha256(split.images, split.labels)}

    def _train_loader(self, device: torch.device, ranks: dict[str, int]) -> ImageTrainLoader:
        sizes = {"num_classes": self.num_classes, "batch_size": self._batch_size, "seed": self._seed}
        options = {"augmentation": self._augmentation, "drop_last": self._drop_last}
        options["probabilities"] = self._probabilities()
        return ImageTrainLoader(**self._loader_arguments("train", device), **ranks, **sizes, **options)

    def _probabilities(self) -> np.ndarray | None:
        return draw_probabilities(self._splits["train"].labels, self._sampling)

    def _eval_loader(self, name: str, device: torch.device, ranks: dict[str, int]) -> ImageEvalLoader:
        return ImageEvalLoader(**self._loader_arguments(name, device), batch_size=self._eval_batch_size, **ranks)

    def _loader_arguments(self, name: str, device: torch.device) -> dict[str, Any]:
        assert self.schema is not None
        images, labels = self._splits[name][:2]
        images, labels = map(torch.from_numpy, (images, self._targets.encode(labels, self.schema.answer)))
        layout = {"channels_last": self._channels_last}
        return {"images": images, "labels": labels, "mean": self.mean, "std": self.std, "device": device, **layout}

    def _per_channel(self, key: str, value: float | list[float]) -> list[float]:
        channels = self.image_shape[0]
        values = [float(value)] if isinstance(value, int | float) else [float(v) for v in value]
        if len(values) not in (1, channels):
            raise UserError(f"data.{key} has {len(values)} values, but the images have {channels} channels")
        return values


class Downloaded(Images):
    """Images in the files `remotes` in `data_dir`/`folder`; `data_dir` is by default $LEYDEN_DATA or ~/.cache/leyden.

    The other arguments are those of `Images`.
    """

    folder: ClassVar[str]
    remotes: ClassVar[tuple[Remote, ...]]
    installed: ClassVar[tuple[Path, ...]] = ()  # folders where a system package puts the same files

    def __init__(self, data_dir: DirectoryPath | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._downloads = Files(self.folder, self.remotes, self.installed, data_dir)
