"""Labelled sequences of unequal length that fit in memory, split and served in batches; and the user's own."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import FilePath, NonNegativeInt, PositiveInt

from leyden.batch import NO_TARGET, SequenceBatch
from leyden.data.indexed import OrderedLoader, ShuffledLoader
from leyden.data.loader import place
from leyden.data.split import Fold, Folds, Size, set_aside
from leyden.data.sequences.ts_file import TsFile, read_classes, read_ts
from leyden.errors import UserError


class Examples(NamedTuple):
    """Sequences as they lie in memory."""

    series: list[np.ndarray]  # (T, F) float32 each
    labels: np.ndarray  # (N,) int64

    def pick(self, index: np.ndarray) -> "Examples":
        """Return the examples `index`, in the order of the files."""
        index = np.sort(index)
        return Examples([self.series[i] for i in index], self.labels[index])


class Store:
    """Sequences on one device, scaled, one after the other: what they take is what the files hold, however unequal.

    A batch is padded with zeros to its longest, so no more than its size times what the files hold.
    """

    def __init__(self, examples: Examples, mean: np.ndarray, std: np.ndarray, device: torch.device) -> None:
        self._lengths = np.array([len(values) for values in examples.series])  # stays here: no batch waits for it
        values = np.concatenate(examples.series)  # (sum of T, F)
        self._values = torch.from_numpy((values - mean) / std).to(device)
        self._length = torch.from_numpy(self._lengths).to(device)
        self._start = self._length.cumsum(0) - self._length
        self._label = torch.from_numpy(examples.labels.copy()).to(device)

    def __len__(self) -> int:
        return len(self._lengths)

    def take(self, index: np.ndarray, rows: slice = slice(None)) -> SequenceBatch:
        """Return the sequences `index[rows]`, as long as the longest of them."""
        index = index[rows]
        where = torch.from_numpy(index).to(self._values.device, non_blocking=True)
        step = torch.arange(int(self._lengths[index].max()), device=where.device)
        length = self._length[where]
        beyond = step >= length[:, None]  # (B, T)
        place = (self._start[where, None] + step).masked_fill(beyond, 0)
        padded = self._values[place].masked_fill(beyond[..., None], 0)
        return SequenceBatch(padded, length, self._label[where])


class Sequences(LightningDataModule):
    """Base of the data sets of labelled sequences. A subclass says how to `read()` its files, and names the `classes`.

    `num_classes` and `num_features`, the values at each step, are what the files must hold. Each feature is scaled to
    mean 0 and deviation 1 over the examples trained on; the scale and the names of the classes travel in the
    checkpoint. `batch_size` and `eval_batch_size` (default: the same) count over all ranks. `val_size` of the
    training examples, as a count or fraction, are for validation, or in a cross-validation the part `fold` (from 0)
    of `folds`: chosen by `split_seed`, never by the run's `seed`, every class in proportion if `stratify`. `limit`
    trains on that many of the rest; a smaller limit is a part of a larger one.
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        num_features: PositiveInt,
        batch_size: PositiveInt = 32,
        eval_batch_size: PositiveInt | None = None,
        val_size: Size = 0.2,
        split_seed: NonNegativeInt = 0,
        stratify: bool = True,
        folds: Folds | None = None,
        fold: NonNegativeInt | None = None,
        limit: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, num_features
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size or batch_size
        self._held_out = Fold.chosen(folds, fold) or val_size
        self._split_seed, self._stratify, self._limit, self._seed = split_seed, stratify, limit, seed
        self._splits: dict[str, Examples] = {}
        self._mean = self._std = np.empty(0, np.float32)  # learned by setup(), or from a checkpoint
        self._classes: list[str] = []  # likewise

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        raise NotImplementedError

    def read(self) -> tuple[Examples, Examples]:
        """Read the training and test examples from their files."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the files and split them, and learn the scale unless it came from a checkpoint; once."""
        if self._splits:
            return
        train, test = self.read()
        stated = (self.num_classes, self.num_features)
        found = (len(self.classes), train.series[0].shape[1])
        if stated != found:
            raise UserError(f"data.(num_classes, num_features) is {stated}, but the files hold {found}")
        val, rest = set_aside("data.val_size", self._held_out, train.labels, self._split_seed, self._stratify)
        if self._limit is not None and self._limit > len(rest):
            raise UserError(f"data.limit={self._limit} is larger than the {len(rest)} training examples")
        trained_on = train.pick(rest[: self._limit])
        if not len(self._mean):
            steps = np.concatenate(trained_on.series)  # (sum of T, F)
            self._mean, std = steps.mean(0), steps.std(0)
            self._std = np.where(std > 0, std, 1)  # a feature that never changes says nothing
        self._splits = {"train": trained_on, "val": train.pick(val), "test": test}

    def fingerprint(self) -> dict[str, dict]:
        """Return the size and sha256 (over values, lengths, then labels) of each split, which `setup` made."""
        prints = {}
        for name, split in self._splits.items():
            digest = hashlib.sha256(np.concatenate(split.series).tobytes())
            digest.update(np.array([len(values) for values in split.series]).tobytes())
            digest.update(split.labels.tobytes())
            prints[name] = {"size": len(split.labels), "sha256": digest.hexdigest()}
        return prints

    def state_dict(self) -> dict[str, list]:
        """Return the scale and the classes, so that a checkpoint classifies without the examples."""
        if not len(self._mean):
            return {}
        return {"mean": self._mean.tolist(), "std": self._std.tolist(), "classes": self.classes}

    def load_state_dict(self, state_dict: dict[str, list]) -> None:
        """Take the scale and the classes of a checkpoint."""
        self._mean, self._std = (np.array(state_dict[k], np.float32) for k in ("mean", "std"))
        self._classes = state_dict["classes"]

    def train_dataloader(self) -> ShuffledLoader[SequenceBatch]:
        """Return the shuffled batches."""
        store, ranks = self._served("train")
        return ShuffledLoader(store.take, len(store), batch_size=self._batch_size, seed=self._seed, **ranks)

    def val_dataloader(self) -> OrderedLoader[SequenceBatch]:
        """Return the validation examples in order."""
        return self._ordered("val")

    def test_dataloader(self) -> OrderedLoader[SequenceBatch]:
        """Return the test examples in order."""
        return self._ordered("test")

    def predict_dataloader(self) -> OrderedLoader[SequenceBatch]:
        """Return the test examples in order."""
        return self._ordered("test")

    def read_file(self, path: Path) -> TsFile:
        """Read a .ts file with as many values at each step as are trained on."""
        file = read_ts(path)
        if (found := file.series[0].shape[1]) != self.num_features:
            raise UserError(f"{path} has {found} values at each step, but data.num_features={self.num_features}")
        return file

    def load_files(self, paths: Sequence[Path]) -> Iterator[tuple[list[str], SequenceBatch]]:
        """Load .ts files, scaled as in training, in batches; their labels are not read."""
        if not len(self._mean):
            self.setup()
        for path in paths:
            series = self.read_file(path).series
            unknown = Examples(series, np.full(len(series), NO_TARGET))
            store = Store(unknown, self._mean, self._std, torch.device("cpu"))
            for first in range(0, len(series), self._eval_batch_size):
                rows = np.arange(first, min(first + self._eval_batch_size, len(series)))
                yield [f"{path}[{i}]" for i in rows], store.take(rows)

    def _ordered(self, name: str) -> OrderedLoader[SequenceBatch]:
        store, ranks = self._served(name)
        return OrderedLoader(store.take, len(store), batch_size=self._eval_batch_size, **ranks)

    def _served(self, name: str) -> tuple[Store, dict[str, int]]:
        """A split on the trainer's device, and the trainer's rank; without a trainer, this process."""
        device, ranks = place(self.trainer)
        return Store(self._splits[name], self._mean, self._std, device), ranks


class TsFiles(Sequences):
    """Your own .ts files, the format of the UCR and UEA archives. Without `test`, `test_size` of `train` is set aside.

    The other arguments are those of `Sequences`.
    """

    def __init__(self, train: FilePath, test: FilePath | None = None, test_size: Size = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._train, self._test, self._test_size = Path(train), Path(test) if test else None, test_size

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        if not self._classes:
            self._classes = read_classes(self._train)
        return self._classes

    def read(self) -> tuple[Examples, Examples]:
        """Read one or two files."""
        file = read_ts(self._train)
        if file.classes != self.classes:
            raise UserError(f"{self._train} has the classes {file.classes}, but the model learnt {self.classes}")
        train = Examples(file.series, file.labels)
        if self._test is None:
            test, rest = set_aside("data.test_size", self._test_size, train.labels, 0, self._stratify)
            return train.pick(rest), train.pick(test)
        other = self.read_file(self._test)
        if other.classes != file.classes:
            raise UserError(f"{self._test} has the classes {other.classes}, but {self._train} has {file.classes}")
        return train, Examples(other.series, other.labels)
