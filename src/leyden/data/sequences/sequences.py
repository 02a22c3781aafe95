"""Sequences of unequal length with a class or a number each, in memory: the base of the data sets, your .ts files."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import FilePath, NonNegativeInt, PositiveInt

from leyden.batch import NO_TARGET, SequenceBatch
from leyden.data.base import Data, check_facts, sha256
from leyden.data.indexed import BatchFunction
from leyden.data.sampling import Sampling, draw_probabilities
from leyden.data.split import Size, set_aside
from leyden.data.targets import Targets, check_sampling, make_targets
from leyden.errors import UserError
from leyden.preparation.scale import scale
from leyden.preparation.ts_file import TsFile, read_classes, read_ts
from leyden.schema.field import Arrays, Classes
from leyden.schema.schema import Schema
from leyden.schema.sequences import Steps


class Examples(NamedTuple):
    """Sequences and their targets in memory."""

    series: list[np.ndarray]  # (T, F) float32 each
    labels: np.ndarray  # (N,) int64, or float64 numbers

    def take(self, index: np.ndarray) -> "Examples":
        """Return the examples `index`, in the order of the files."""
        index = np.sort(index)
        return Examples([self.series[i] for i in index], self.labels[index])


class SequenceStore:
    """Scaled sequences, concatenated, on one device, so that padding takes no memory.

    A batch is padded with zeros to its longest sequence.
    """

    def __init__(
        self, series: list[np.ndarray], labels: np.ndarray, mean: np.ndarray, std: np.ndarray, device: torch.device
    ) -> None:
        # on the host, so that no batch waits for the device
        self._lengths = np.array([len(values) for values in series])
        values = np.concatenate(series)  # (sum of T, F)
        self._values = torch.from_numpy(scale(values, mean, std)).to(device)
        self._length = torch.from_numpy(self._lengths).to(device)
        self._start = self._length.cumsum(0) - self._length
        self._label = torch.from_numpy(labels.copy()).to(device)

    def __len__(self) -> int:
        return len(self._lengths)

    def take(self, index: np.ndarray, rows: slice = slice(None)) -> SequenceBatch:
        """Return the sequences `index[rows]`, padded to the longest of them."""
        index = index[rows]
        row = torch.from_numpy(index).to(self._values.device, non_blocking=True)
        step = torch.arange(int(self._lengths[index].max()), device=row.device)
        length = self._length[row]
        is_padding = step >= length[:, None]  # (B, T)
        position = (self._start[row, None] + step).masked_fill(is_padding, 0)
        padded = self._values[position].masked_fill(is_padding[..., None], 0)
        return SequenceBatch(padded, length, self._label[row])


class Sequences(Data):
    """Base of the data sets of labelled sequences. A subclass defines how to `read()` its files, and the `classes`.

    The files must hold `num_classes` classes and `num_features` values at each step. Each feature is scaled to mean 0
    and deviation 1 over the training examples; the checkpoint holds the scale and the names of the classes.
    `val_size` of the training examples, a count or a fraction, are for validation unless `folds` are set;
    `split_seed` chooses them, with every class in proportion if `stratify`. `sampling` is that of
    `leyden.data.Images`. The other arguments are those of `Data`.
    """

    _targets = Targets()  # the kind of the answers

    def __init__(
        self,
        num_classes: PositiveInt,
        num_features: PositiveInt,
        batch_size: PositiveInt = 32,
        val_size: Size = 0.2,
        split_seed: NonNegativeInt = 0,
        stratify: bool = True,
        sampling: Sampling = "uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        self.num_classes, self.num_features = num_classes, num_features
        self._val_size, self._split_seed, self._stratify = val_size, split_seed, stratify
        self._sampling: Sampling = sampling

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        raise NotImplementedError

    def read(self) -> tuple[Examples, Examples]:
        """Read the training and test examples from their files."""
        raise NotImplementedError

    def read_file(self, path: Path) -> TsFile:
        """Read a .ts file; UserError unless it has `num_features` values at each step."""
        file = read_ts(path)
        if (num_features := file.series[0].shape[1]) != self.num_features:
            raise UserError(f"{path} has {num_features} values at each step, but data.num_features={self.num_features}")
        return file

    def to_batch(self, arrays: Arrays) -> SequenceBatch:
        """Return a batch of sequences, without labels."""
        values, length = (torch.from_numpy(arrays[name]) for name in ("input", "length"))
        return SequenceBatch(values, length, torch.full_like(length, NO_TARGET))

    def _make_splits(self) -> dict[str, Examples]:
        train, test = self.read()
        config = {"num_classes": self.num_classes, "num_features": self.num_features}
        num_classes = len(self.classes) or self._targets.count(train.labels)
        check_facts(config, {"num_classes": num_classes, "num_features": train.series[0].shape[1]})
        strata = self._targets.strata(train.labels)
        rows, val_rows = self._hold_out(self._val_size, strata, self._split_seed, self._stratify)
        return {"train": train.take(rows), "val": train.take(val_rows), "test": test}

    def _make_schema(self) -> Schema:
        train = self._splits["train"]
        return Schema(input=Steps.fit(train.series), answer=self._targets.field(train.labels, self.classes))

    def _describe(self, split: Examples) -> dict[str, Any]:
        lengths = np.array([len(values) for values in split.series])
        return {"size": len(split.labels), "sha256": sha256(np.concatenate(split.series), lengths, split.labels)}

    def _batch_function(self, name: str, device: torch.device) -> tuple[BatchFunction, int]:
        assert self.schema is not None
        assert isinstance(self.schema.input, Steps)
        series, labels = self._splits[name]
        labels = self._targets.encode(labels, self.schema.answer)
        store = SequenceStore(series, labels, *self.schema.input.scaling, device)
        return store.take, len(store)

    def _probabilities(self) -> np.ndarray | None:
        return draw_probabilities(self._splits["train"].labels, self._sampling)


class TsFiles(Sequences):
    """Your own .ts files, the format of the UCR and UEA archives. Without `test`, `test_size` of `train` is set aside.

    With `answer=number`, the files have the header `@targetLabel true` and a number in `unit` for each sequence,
    `num_classes` is 1 (the outputs of the net), and the net learns the numbers scaled to mean 0 and deviation 1. The
    other arguments are those of `Sequences`.
    """

    def __init__(
        self,
        train: FilePath,
        test: FilePath | None = None,
        test_size: Size = 0.2,
        answer: Literal["class", "number"] = "class",
        unit: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._train_path, self._test_path, self._test_size = Path(train), Path(test) if test else None, test_size
        self._answer, self._targets = answer, make_targets(answer, "@data", unit)
        check_sampling(self._sampling, answer)

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        if self._answer == "number":
            return []
        if self.schema:
            assert isinstance(self.schema.answer, Classes)
            return self.schema.answer.names
        return read_classes(self._train_path)

    def read(self) -> tuple[Examples, Examples]:
        """Read one or two files."""
        train_file = read_ts(self._train_path)
        answer = "class" if train_file.classes else "number"
        if answer != self._answer:
            raise UserError(f"{self._train_path} has a {answer} for each sequence: set data.answer={answer}")
        if train_file.classes != self.classes:
            model_classes = f"the model learned {self.classes}"
            raise UserError(f"{self._train_path} has the classes {train_file.classes}, but {model_classes}")
        train = Examples(train_file.series, train_file.labels)
        if self._test_path is None:
            strata = self._targets.strata(train.labels)
            test, rest = set_aside("data.test_size", self._test_size, strata, 0, self._stratify)
            return train.take(rest), train.take(test)
        test_file = self.read_file(self._test_path)
        if test_file.classes != train_file.classes:
            train_classes = f"{self._train_path} has {train_file.classes}"
            raise UserError(f"{self._test_path} has the classes {test_file.classes}, but {train_classes}")
        return train, Examples(test_file.series, test_file.labels)
