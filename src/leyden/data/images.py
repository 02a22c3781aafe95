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


def _split_order(labels: np.ndarray, seed: int, stratify: bool) -> np.ndarray:
    """Return a random order; if stratified, every stretch of it holds the classes in proportion."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if not stratify:
        return order
    fraction = np.empty(len(labels))  # how far through its own class an example stands
    for k in np.unique(labels):
        members = np.flatnonzero(labels[order] == k)
        fraction[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(fraction, kind="stable")]


def _select(split: Split, index: np.ndarray) -> Split:
    index = np.sort(index)  # in the order of the files
    return Split(split.images[index], split.labels[index])


def _count(key: str, size: float, total: int) -> int:
    """Turn a count or fraction into a count that leaves something on both sides."""
    count = size if isinstance(size, int) else round(size * total)
    if not 0 < count < total:
        raise UserError(f"{key}={size} sets {count} of {total} examples aside: 1 to {total - 1} are possible")
    return count


class Digits(Images):
    """Handwritten digits of 8x8 pixels with 17 grey levels, as scikit-learn carries them.

    1,797 examples (Alpaydin & Kaynak 1998), of which a fixed fifth is for testing.
    """

    names = tuple("0123456789")

    def read(self) -> tuple[Split, Split]:
        """Read the table of scikit-learn, without importing it."""
        spec = find_spec("sklearn")
        if spec is None or spec.origin is None:
            raise UserError("data=digits reads the digits that scikit-learn carries: install scikit-learn")
        path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",")  # (N, 65): pixels 0..16, then the label
        images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        split = Split(images, table[:, -1].astype(np.int64))
        order = _split_order(split.labels, seed=0, stratify=True)
        num_test = len(order) // 5
        return _select(split, order[num_test:]), _select(split, order[:num_test])


class MNIST(Images):
    """Handwritten digits of 28x28 pixels: 60,000 to train on and 10,000 to test (LeCun et al. 1998)."""

    folder = "mnist"
    remotes = tuple(
        Remote(
            name,
            f"md5:{md5}",
            (
                f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}",
                f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}",
            ),
        )
        for name, md5 in (
            ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
            ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
            ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
        )
    )
    names = tuple("0123456789")

    def read(self) -> tuple[Split, Split]:
        """Read the four IDX files."""
        train_images, train_labels, test_images, test_labels = map(self._idx, self.remotes)
        return (
            Split(train_images[:, None], train_labels.astype(np.int64)),
            Split(test_images[:, None], test_labels.astype(np.int64)),
        )

    def _idx(self, remote: Remote) -> np.ndarray:
        """Read an IDX file: 0, 0, type (8: bytes), number of dimensions; their big-endian sizes; values."""
        content = self._content(remote)
        if not remote.unpacked:
            content = gzip.decompress(content)
        try:
            shape = struct.unpack_from(f">{content[3]}I", content, 4)
            values = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
        except (IndexError, struct.error, ValueError):
            values = None
        if values is None or content[:3] != b"\0\0\x08":
            raise UserError(f"{remote.name} is not an IDX file of bytes")
        return values


class FashionMNIST(MNIST):
    """Clothes of 28x28 pixels in MNIST's format: 60,000 to train on and 10,000 to test (Xiao et al. 2017)."""

    folder = "fashion-mnist"
    installed = (Path("/usr/share/datasets/fashion-mnist"),)  # Debian's dataset-fashion-mnist
    # Debian compresses the same files anew, so the digests are of what gunzip makes of them.
    remotes = tuple(
        Remote(
            name,
            f"sha256:{sha256}",
            (
                f"https://fashion-mnist.s3.eu-central-1.amazonaws.com/{name}",
                f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}",
                f"https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/{name}",
            ),
            unpacked=True,
        )
        for name, sha256 in (
            (
                "train-images-idx3-ubyte.gz",
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            ("t10k-images-idx3-ubyte.gz", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
            ("t10k-labels-idx1-ubyte.gz", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
        )
    )
    names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )


class CIFAR10(Images):
    """Colour pictures of 32x32 pixels: 50,000 to train on and 10,000 to test (Krizhevsky 2009).

    Read from the binary version of the files, which needs no unpickling.
    """

    folder = "cifar"
    remotes = (
        Remote(
            "cifar-10-binary.tar.gz",
            "md5:c32a1d4ab5d03f1284b67883e8d87530",
            (
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz",
            ),
        ),
    )
    members: ClassVar[tuple[str, ...]] = (
        *(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
        "cifar-10-batches-bin/test_batch.bin",
    )  # the last one is for testing
    label_bytes: ClassVar[int] = 1  # before each picture; the last of them is the class
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def read(self) -> tuple[Split, Split]:
        """Read the members of the archive in memory; nothing is unpacked to the disk."""
        (remote,) = self.remotes
        archive = io.BytesIO(self._content(remote))
        parts = {}
        with tarfile.open(fileobj=archive, mode="r|gz") as tar:
            for member in tar:
                if member.name in self.members and (file := tar.extractfile(member)):
                    parts[member.name] = self._records(file.read())
        if missing := [name for name in self.members if name not in parts]:
            raise UserError(f"{remote.name} lacks {', '.join(missing)}: delete it and start again")
        *train, test = (parts[name] for name in self.members)
        return Split(*(np.concatenate(part) for part in zip(*train, strict=True))), test

    def _records(self, content: bytes) -> Split:
        records = np.frombuffer(content, np.uint8).reshape(-1, self.label_bytes + 3 * 32 * 32)
        labels, pixels = records[:, self.label_bytes - 1], records[:, self.label_bytes :]
        return Split(pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64))


class CIFAR100(CIFAR10):
    """CIFAR with 100 fine classes: 50,000 pictures to train on and 10,000 to test (Krizhevsky 2009)."""

    remotes = (
        Remote(
            "cifar-100-binary.tar.gz",
            "md5:03b5dce01913d631647c71ecec9e9cb8",
            (
                "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                "https://cave.cs.toronto.edu/kriz/cifar-100-binary.tar.gz",
            ),
        ),
    )
    members = ("cifar-100-binary/train.bin", "cifar-100-binary/test.bin")
    label_bytes = 2  # coarse, fine
    names = tuple(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
        camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
        cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
        lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
        oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
        possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
        spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
        train trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """.split()  # noqa: SIM905  (a name on each line would fill two pages)
    )


class ImageFolder(Images):
    """Your own PNG and JPEG pictures, decoded to `image_shape` and kept in memory.

    `train` and `test` are each a folder with one folder per class, or a CSV file with the columns `path`
    (relative to that file) and `label`. Without `test`, `test_size` of `train` is set aside, always the
    same examples for the same files. `classes` gives the names in the order of the labels; by default they
    are sorted, numbers by value. A picture of another size is resized with the filter `resample`: whole
    (`fit=stretch`), or its largest centred part with the right proportions (`fit=crop`). A picture that
    cannot be read is an error, or left out with a warning that names it (`on_corrupt=skip`).
    """

    SUFFIXES: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg")

    def __init__(
        self,
        train: DirectoryPath | FilePath,
        test: DirectoryPath | FilePath | None = None,
        test_size: Size = 0.2,
        classes: list[str] | None = None,
        resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear",
        fit: Literal["stretch", "crop"] = "stretch",
        on_corrupt: Literal["error", "skip"] = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._train, self._test, self._test_size = Path(train), Path(test) if test else None, test_size
        self._resample, self._fit, self._on_corrupt = resample, fit, on_corrupt
        self._classes = list(classes) if classes is not None else None

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        if self._classes is None:
            names = {label for _, label in self._listing("data.train", self._train)}
            by_value = all(name.isdecimal() for name in names)
            self._classes = sorted(names, key=lambda name: (int(name) if by_value else 0, name))
        return self._classes

    def read(self) -> tuple[Split, Split]:
        """Decode all pictures."""
        train = self._decode("data.train", self._train)
        if self._test is not None:
            return train, self._decode("data.test", self._test)
        order = _split_order(train.labels, seed=0, stratify=self._stratify)
        num_test = _count("data.test_size", self._test_size, len(order))
        return _select(train, order[num_test:]), _select(train, order[:num_test])

    def _listing(self, key: str, source: Path) -> list[tuple[Path, str]]:
        """List the pictures with the name of their class, in a fixed order."""
        if source.is_dir():
            found = sorted(p for p in source.glob("*/*") if p.suffix.lower() in self.SUFFIXES)
            if not found:
                raise UserError(f"{key}={source} holds no CLASS/PICTURE with {' or '.join(self.SUFFIXES)}")
            return [(path, path.parent.name) for path in found]
        if not source.is_file():
            raise UserError(f"{key}={source} is neither a folder nor a CSV file")
        with source.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if not {"path", "label"} <= set(rows.fieldnames or ()):
                raise UserError(f"{key}={source} has the columns {rows.fieldnames}; it needs path and label")
            listed = [(source.parent / row["path"], row["label"]) for row in rows]
        if not listed:
            raise UserError(f"{key}={source} lists no picture")
        return listed

    def _decode(self, key: str, source: Path) -> Split:
        listed = self._listing(key, source)
        number = {name: k for k, name in enumerate(self.classes)}
        if unknown := sorted({label for _, label in listed} - number.keys()):
            raise UserError(f"{key}={source} has the class {unknown[0]!r}, which is none of {self.classes}")

        def attempt(path: Path) -> np.ndarray | UserError:
            try:
                return self._picture(path)
            except UserError as error:
                return error

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes and resizes outside the interpreter's lock
            decoded = list(pool.map(attempt, (path for path, _ in listed)))
        broken = [str(result) for result in decoded if isinstance(result, UserError)]
        if broken and self._on_corrupt == "error":
            raise UserError(
                f"{key}={source} has {len(broken)} unreadable pictures: {'; '.join(broken)}; "
                "mend or remove them, or set data.on_corrupt=skip"
            )
        if broken:
            log.warning("%s=%s: left out %d pictures: %s", key, source, len(broken), "; ".join(broken))
        kept = [
            (image, number[label])
            for image, (_, label) in zip(decoded, listed, strict=True)
            if not isinstance(image, UserError)
        ]
        if not kept:
            raise UserError(f"{key}={source} has no picture that can be read")
        images, labels = zip(*kept, strict=True)
        return Split(np.stack(images), np.array(labels, np.int64))
