"""Texts with a class, labels or a number each, in memory: the base of the data sets, your tables and folders."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import DirectoryPath, FilePath, NonNegativeInt, PositiveInt

from leyden.batch import NO_TARGET, PassageBatch
from leyden.data.base import Data, check_facts, sha256
from leyden.data.indexed import BatchFunction
from leyden.data.sampling import Sampling, draw_probabilities
from leyden.data.split import Size, set_aside
from leyden.data.targets import SEPARATOR, Answer, Targets, check_sampling, make_targets
from leyden.errors import UserError
from leyden.preparation.texts import COLUMN, TABLES, read_cells, read_rows, read_text
from leyden.preparation.tokenizers import learn
from leyden.schema.field import Arrays, Item, Sketch
from leyden.schema.passages import Passage
from leyden.schema.schema import Schema


class Texts(NamedTuple):
    """Texts and their targets in memory."""

    texts: list[str]
    labels: np.ndarray  # (N,) int64, (N, L) float32 for each of L labels, or (N,) float64 numbers

    def take(self, index: np.ndarray) -> "Texts":
        """Return the texts `index`, in the order of the files."""
        index = np.sort(index)
        return Texts([self.texts[i] for i in index], self.labels[index])


class PassageStore:
    """Token ids of texts, concatenated, on one device; a batch is padded to its longest text."""

    def __init__(self, rows: list[np.ndarray], labels: np.ndarray, device: torch.device) -> None:
        self._lengths = np.array([len(ids) for ids in rows])  # on the host, so that no batch waits for the device
        self._ids = torch.from_numpy(np.concatenate(rows).astype(np.int64)).to(device)
        self._length = torch.from_numpy(self._lengths).to(device)
        self._start = self._length.cumsum(0) - self._length
        self._label = torch.from_numpy(labels.copy()).to(device)

    def __len__(self) -> int:
        return len(self._lengths)

    def take(self, index: np.ndarray, rows: slice = slice(None)) -> PassageBatch:
        """Return the texts `index[rows]`, padded to the longest of them."""
        index = index[rows]
        row = torch.from_numpy(index).to(self._ids.device, non_blocking=True)
        step = torch.arange(int(self._lengths[index].max()), device=row.device)
        length = self._length[row]
        is_padding = step >= length[:, None]  # (B, T)
        position = (self._start[row, None] + step).masked_fill(is_padding, 0)
        return PassageBatch(self._ids[position].masked_fill(is_padding, 0), length, self._label[row])


class Passages(Data):
    """Base of the data sets of labelled texts. A subclass defines how to `read()` its files, and the `classes`.

    The files must hold `num_classes` classes. The `tokenizer` is learned from the training texts: at most `vocab_size`
    words or byte pairs that occur `min_frequency` times or more, or the 256 bytes. Only the first `max_length` tokens
    of a text are read. `val_size` of the training texts, a count or a fraction, are for validation unless `folds` are
    set; `split_seed` chooses them, with every class in proportion if `stratify`. `sampling` is that of
    `leyden.data.Images`. The other arguments are those of `Data`.
    """

    _targets = Targets()  # the kind of the answers

    def __init__(
        self,
        num_classes: PositiveInt,
        vocab_size: PositiveInt = 4000,
        tokenizer: Literal["byte", "word", "bpe"] = "bpe",
        lowercase: bool = False,
        min_frequency: PositiveInt = 1,
        max_length: PositiveInt = 256,
        batch_size: PositiveInt = 32,
        val_size: Size = 0.1,
        split_seed: NonNegativeInt = 0,
        stratify: bool = True,
        sampling: Sampling = "uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        self.num_classes, self.vocab_size, self._max_length = num_classes, vocab_size, max_length
        self._tokenizer_options = {"kind": tokenizer, "vocab_size": vocab_size, "lowercase": lowercase}
        self._tokenizer_options["min_frequency"] = min_frequency
        if tokenizer == "byte" and vocab_size != 256:
            raise UserError(f"data.tokenizer=byte has 256 tokens, but data.vocab_size={vocab_size}: set it to 256")
        self._val_size, self._split_seed, self._stratify = val_size, split_seed, stratify
        self._sampling: Sampling = sampling

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        raise NotImplementedError

    def read(self) -> tuple[Texts, Texts]:
        """Read the training and test texts from their files."""
        raise NotImplementedError

    def to_batch(self, arrays: Arrays) -> PassageBatch:
        """Return a batch of texts, without labels."""
        token, length = (torch.from_numpy(arrays[name]) for name in ("token", "length"))
        return PassageBatch(token, length, torch.full_like(length, NO_TARGET))

    def _make_splits(self) -> dict[str, Texts]:
        train, test = self.read()
        num_classes = len(self.classes) or self._targets.count(train.labels)
        check_facts({"num_classes": self.num_classes}, {"num_classes": num_classes})
        strata = self._targets.strata(train.labels)
        rows, val_rows = self._hold_out(self._val_size, strata, self._split_seed, self._stratify)
        return {"train": train.take(rows), "val": train.take(val_rows), "test": test}

    def _make_schema(self) -> Schema:
        texts, labels = self._splits["train"]
        tokenizer = learn(text="\n".join(texts), **self._tokenizer_options)
        length = Sketch.of(np.array([len(tokenizer.encode(text)) for text in texts]))
        passage = Passage(state=tokenizer.state_dict(), max_length=self._max_length, length=length)
        return Schema(input=passage, answer=self._targets.field(labels, self.classes))

    def _describe(self, split: Texts) -> dict[str, Any]:
        return {"size": len(split.labels), "sha256": sha256("\0".join(split.texts).encode(), split.labels)}

    def _batch_function(self, name: str, device: torch.device) -> tuple[BatchFunction, int]:
        assert self.schema is not None
        split = self._splits[name]
        items = (Item(f"text {number} of the split {name}", text) for number, text in enumerate(split.texts))
        labels = self._targets.encode(split.labels, self.schema.answer)
        store = PassageStore([self.schema.input.prepare(item)[0] for item in items], labels, device)
        return store.take, len(store)

    def _probabilities(self) -> np.ndarray | None:
        return draw_probabilities(self._splits["train"].labels, self._sampling)


class TextTable(Passages):
    """Your own texts: tables (.csv, .jsonl, .parquet), or folders with one folder of .txt files for each class.

    `text` and `target` are the names of the columns of a table. With `answer=labels`, a target is any number of labels,
    `cat;dog` or a list, and `num_classes` is the number of all labels. With `answer=number`, it is a number in `unit`,
    `num_classes` is 1 (the outputs of the net), and the net learns the numbers scaled to mean 0 and deviation 1.
    Without `test`, `test_size` of `train` is set aside. The other arguments are those of `Passages`.
    """

    def __init__(
        self,
        train: DirectoryPath | FilePath,
        test: DirectoryPath | FilePath | None = None,
        test_size: Size = 0.1,
        text: str = COLUMN,
        answer: Answer = "class",
        target: str = "label",
        unit: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_sampling(self._sampling, answer)
        self._answer, self._targets = answer, make_targets(answer, target, unit)
        self._train_path, self._test_path, self._test_size = Path(train), Path(test) if test else None, test_size
        self._text_column, self._target_column = text, target
        self._names: list[str] = []

    @property
    def classes(self) -> list[str]:
        """The names of the classes, sorted, numbers by value."""
        if self.schema:
            return getattr(self.schema.answer, "names", [])  # numbers have none
        return self._names

    def read(self) -> tuple[Texts, Texts]:
        """Read one or two tables or folders."""
        texts, cells = self._read("data.train", self._train_path)
        self._names = self._targets.names(cells)
        train = Texts(texts, self._targets.read(f"data.train={self._train_path}", cells, self.classes))
        if self._test_path is None:
            strata = self._targets.strata(train.labels)
            test, rest = set_aside("data.test_size", self._test_size, strata, 0, self._stratify)
            return train.take(rest), train.take(test)
        texts, cells = self._read("data.test", self._test_path)
        return train, Texts(texts, self._targets.read(f"data.test={self._test_path}", cells, self.classes))

    def _make_schema(self) -> Schema:
        schema = super()._make_schema()
        return schema.model_copy(update={"input": schema.input.model_copy(update={"column": self._text_column})})

    def _read(self, key: str, path: Path) -> tuple[list[str], list[str]]:
        """Return the texts and the cells of their targets."""
        if path.is_dir():
            if self._answer != "class":
                raise UserError(f"data.answer={self._answer} is read from a table, but {key}={path} is a folder")
            files = sorted(path.glob("*/*.txt"))
            if not files:
                raise UserError(f"{key}={path} holds no CLASS/TEXT.txt")
            return [read_text(file) for file in files], [file.parent.name for file in files]
        if path.suffix.lower() not in TABLES:
            raise UserError(f"{key}={path}: its name must end in {', '.join(TABLES)}, or it must be a folder")
        texts, cells = [], []
        columns = read_rows(path, self._text_column), read_cells(path, self._target_column)
        for (name, text), (_, cell) in zip(*columns, strict=True):
            if isinstance(text, UserError):
                raise text
            texts.append(text)
            cells.append(self._cell_text(name, cell))
        return texts, cells

    def _cell_text(self, name: str, cell: object) -> str:
        """Return a cell as text; with labels, it may be a list or empty."""
        if isinstance(cell, UserError):
            raise cell
        if self._answer == "labels" and isinstance(cell, list):
            return SEPARATOR.join(map(str, cell))
        if isinstance(cell, str | int | float) and (cell != "" or self._answer == "labels"):
            return str(cell)
        if cell in ("", None):
            raise UserError(f"{name} has no {self._target_column}")
        raise UserError(
            f"{name}: {self._target_column} is {cell!r}, which cannot be read as data.answer={self._answer}"
        )
