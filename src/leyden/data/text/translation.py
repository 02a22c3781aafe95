"""Sentences and their translations: Multi30k, and the user's own."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import FilePath, NonNegativeInt, PositiveInt

from leyden.batch import BEGIN, END, PAD, PairBatch
from leyden.data.indexed import OrderedLoader, Take
from leyden.data.lines import read_lines
from leyden.data.loader import Loader, check_divides, place
from leyden.data.split import Fold, Folds, Size, set_aside
from leyden.data.text.subwords import NUM_SPECIAL, Subwords
from leyden.errors import UserError

log = logging.getLogger(__name__)

PairFiles = FilePath | list[FilePath]  # one with tabs, or two aligned by line

POOL = 50  # batches whose sentences are sorted by length together


class Corpus(NamedTuple):
    """Sentences, their translations, and where they stand."""

    source: list[str]
    target: list[str]
    files: list[tuple[str, str]]
    line: list[int]  # in the files, from 1

    @classmethod
    def aligned(cls, source: list[str], target: list[str], files: tuple[str, str]) -> "Corpus":
        """Pair lines with lines; UserError if one file has more."""
        if len(source) != len(target):
            raise UserError(
                f"{files[0]} has {len(source)} lines, but {files[1]} has {len(target)}: "
                f"each line must be the translation of the same line"
            )
        return cls(source, target, [files] * len(source), list(range(1, len(source) + 1)))

    def take(self, index: np.ndarray) -> "Corpus":
        """Return the pairs `index`, in the order of the files."""
        chosen = np.sort(index).tolist()
        return Corpus(*([part[i] for i in chosen] for part in self))

    def join(self, other: "Corpus") -> "Corpus":
        """Return the pairs of both in the order of their lines, so that it does not matter how they were parted."""
        rows = sorted([*zip(*self, strict=True), *zip(*other, strict=True)], key=itemgetter(3))
        return Corpus(*map(list, zip(*rows, strict=True)))


class Tokens(NamedTuple):
    """The token ids of one side, and how many there are."""

    ids: np.ndarray  # (N, T) int32, PAD past each end
    length: np.ndarray  # (N,) int64


class Translation(LightningDataModule):
    """Base of the translation data sets. A subclass says how to `read()` its files into train, val and test.

    In a cross-validation the part `fold` (from 0) of `folds` of what train and val hold together is for validation,
    always the same pairs for the same files, and the others are for training. Both sides have a vocabulary of
    subwords, learned from the training part alone (all of it, whatever `limit`); they travel in the checkpoint.
    `source_vocab_size` and `target_vocab_size` are what these must come to; pairs of subwords are merged that occur
    `min_frequency` times or more, in lower case if `lowercase`. `max_length` is the longest sentence in tokens:
    longer training pairs are left out with a warning, a longer one elsewhere is an error. `batch_size` and
    `eval_batch_size` (default: the same) count sentences over all ranks. `limit` trains on that many pairs. Batches
    hold sentences of similar length, drawn from (seed, epoch).
    """

    def __init__(
        self,
        source_vocab_size: PositiveInt,
        target_vocab_size: PositiveInt,
        lowercase: bool = False,
        min_frequency: PositiveInt = 2,
        max_length: PositiveInt = 100,
        batch_size: PositiveInt = 128,
        eval_batch_size: PositiveInt | None = None,
        folds: Folds | None = None,
        fold: NonNegativeInt | None = None,
        limit: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.source_vocab_size, self.target_vocab_size = source_vocab_size, target_vocab_size
        smallest = NUM_SPECIAL + 256
        for key, size in (("source", source_vocab_size), ("target", target_vocab_size)):
            if size < smallest:
                raise UserError(
                    f"data.{key}_vocab_size={size} is smaller than the {smallest} that bytes and special tokens take"
                )
        self.source_vocabulary = Subwords(source_vocab_size, min_frequency, lowercase)
        self.target_vocabulary = Subwords(target_vocab_size, min_frequency, lowercase)
        self._max_length, self._limit, self._seed = max_length, limit, seed
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size or batch_size
        self._min_frequency, self._fold = min_frequency, Fold.chosen(folds, fold)
        self._splits: dict[str, Corpus] = {}

    def read(self) -> dict[str, Corpus]:
        """Read the pairs of `train`, `val` and `test` from their files."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the files, and learn the vocabularies unless they came from a checkpoint; once."""
        if self._splits:
            return
        splits = self.read()
        if self._fold:
            whole = splits["train"].join(splits["val"])
            labels = np.zeros(len(whole.source), np.int64)
            val, rest = set_aside("data.folds", self._fold, labels, 0, stratify=False)
            splits |= {"train": whole.take(rest), "val": whole.take(val)}
        train = splits["train"]
        for key, vocabulary, lines in (
            ("source", self.source_vocabulary, train.source),
            ("target", self.target_vocabulary, train.target),
        ):
            if not len(vocabulary):
                vocabulary.learn(lines)
            stated, found = getattr(self, f"{key}_vocab_size"), len(vocabulary)
            if stated != found:
                raise UserError(
                    f"data.{key}_vocab_size is {stated}, but the training text with "
                    f"data.min_frequency={self._min_frequency} makes {found} tokens: set it to {found}"
                )
        if self._limit is not None:
            if self._limit > len(train.source):
                raise UserError(f"data.limit={self._limit} is larger than the {len(train.source)} training pairs")
            order = np.random.default_rng(0).permutation(len(train.source))
            splits["train"] = train.take(order[: self._limit])
        self._splits = splits

    def fingerprint(self) -> dict[str, dict]:
        """Return the size and sha256 (over source lines, then target lines) of each split, which `setup` made.

        `tokens` is the sha256 of the target's vocabulary, which losses of tokens depend on.
        """
        prints = {}
        vocabulary = json.dumps(self.target_vocabulary.state_dict(), sort_keys=True)
        tokens = hashlib.sha256(vocabulary.encode()).hexdigest()
        for name, corpus in self._splits.items():
            digest = hashlib.sha256("\n".join([*corpus.source, *corpus.target]).encode())
            prints[name] = {"size": len(corpus.source), "sha256": digest.hexdigest(), "tokens": tokens}
        return prints

    def state_dict(self) -> dict[str, Any]:
        """Return both vocabularies, so that a checkpoint translates without the corpus."""
        return {"source": self.source_vocabulary.state_dict(), "target": self.target_vocabulary.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the vocabularies of a checkpoint."""
        self.source_vocabulary.load_state_dict(state_dict["source"])
        self.target_vocabulary.load_state_dict(state_dict["target"])

    def train_dataloader(self) -> "BucketLoader":
        """Return the shuffled batches."""
        source, target = self._tokens("train")
        short = np.maximum(source.length, target.length) <= self._max_length
        if not short.all():
            log.warning(
                "%d of %d training pairs are longer than data.max_length=%d tokens and are left out",
                (~short).sum(),
                len(short),
                self._max_length,
            )
            source, target = (
                Tokens(part.ids[short, : self._max_length], part.length[short]) for part in (source, target)
            )
        device, ranks = place(self.trainer)
        take = PairStore(source, target, device)
        return BucketLoader(take, source.length, target.length, batch_size=self._batch_size, seed=self._seed, **ranks)

    def val_dataloader(self) -> OrderedLoader[PairBatch]:
        """Return the validation pairs, the shortest first."""
        return self._eval_loader("val")

    def test_dataloader(self) -> OrderedLoader[PairBatch]:
        """Return the test pairs, the shortest first."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> OrderedLoader[PairBatch]:
        """Return the test pairs, the shortest first."""
        return self._eval_loader("test")

    def load_files(self, paths: Sequence[Path]) -> Iterator[tuple[list[str], PairBatch]]:
        """Yield the sentences of text files, one a line, in order: names `file:line`, and a batch without targets.

        Raises:
            UserError: when a file cannot be read, or a line is longer than `max_length` tokens.
        """
        if not len(self.source_vocabulary):
            raise RuntimeError("there is no vocabulary: call setup(), or load_state_dict() with a checkpoint's")
        for path in paths:
            lines = read_lines(Path(path))
            for first in range(0, len(lines), self._eval_batch_size):
                part = lines[first : first + self._eval_batch_size]
                names = [f"{path}:{first + 1 + i}" for i in range(len(part))]
                source = _padded([[*ids, END] for ids in self.source_vocabulary.encode(part)])
                self._check_length(source, names)
                target = _padded([[BEGIN, END]] * len(part))
                take = PairStore(source, target, torch.device("cpu"))
                yield names, take(np.arange(len(part)))

    def _eval_loader(self, name: str) -> OrderedLoader[PairBatch]:
        source, target = self._tokens(name)
        order = np.lexsort((target.length, source.length))
        device, ranks = place(self.trainer)
        take = PairStore(*(Tokens(part.ids[order], part.length[order]) for part in (source, target)), device)
        return OrderedLoader(take, len(order), batch_size=self._eval_batch_size, **ranks)

    def _tokens(self, name: str) -> tuple[Tokens, Tokens]:
        corpus = self._splits[name]
        source = _padded([[*ids, END] for ids in self.source_vocabulary.encode(corpus.source)])
        target = _padded([[BEGIN, *ids, END] for ids in self.target_vocabulary.encode(corpus.target)])
        if name != "train":
            for side, tokens in enumerate((source, target)):
                places = zip(corpus.files, corpus.line, strict=True)
                self._check_length(tokens, [f"{files[side]}:{line}" for files, line in places])
        return source, target

    def _check_length(self, tokens: Tokens, names: list[str]) -> None:
        if tokens.length.max() > self._max_length:
            worst = int(tokens.length.argmax())
            raise UserError(
                f"{names[worst]} is {tokens.length[worst]} tokens long, more than data.max_length={self._max_length}: "
                f"set that to {tokens.length[worst]} or more, or shorten the line"
            )


class PairStore:
    """Token ids on one device; called with indices, it gives their batch, padded to its own longest sentences."""

    def __init__(self, source: Tokens, target: Tokens, device: torch.device) -> None:
        self._device = device
        self._lengths = source.length, target.length  # on the host, so that nobody waits for the device
        self._tokens = [torch.from_numpy(array).to(device) for array in (*source, *target)]

    def __call__(self, index: np.ndarray, rows: slice = slice(None)) -> PairBatch:
        """Return the pairs `index[rows]`, of a batch of the pairs `index`."""
        mine = torch.from_numpy(index[rows]).to(self._device, non_blocking=True)
        source, source_length, target, target_length = self._tokens
        longest, longest_target = (int(length[index[rows]].max()) for length in self._lengths)
        return PairBatch(
            source[:, :longest].index_select(0, mine).long(),
            source_length.index_select(0, mine),
            target[:, :longest_target].index_select(0, mine).long(),
            target_length.index_select(0, mine),
            float(self._lengths[1][index].mean() - 1),
        )


class BucketLoader(Loader[PairBatch]):
    """Shuffled batches of pairs of similar length; a smaller last batch is left out.

    An epoch's order, drawn from (seed, epoch), is sorted by length within pools of POOL batches, and the
    batches are shuffled. `batch_size` is global: the ranks take a pair each in turn.
    """

    def __init__(
        self,
        take: Take[PairBatch],
        source_length: np.ndarray,
        target_length: np.ndarray,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_divides("data.batch_size", batch_size, world_size)
        if batch_size > len(source_length):
            raise UserError(f"data.batch_size={batch_size} is larger than the {len(source_length)} training pairs")
        super().__init__(len(source_length) // batch_size)
        self._take = take
        self._rows = slice(rank, None, world_size)
        self._plan = lru_cache(maxsize=1)(partial(plan, source_length, target_length, batch_size, seed))

    def batch(self, epoch: int, index: int) -> PairBatch:
        """Return this rank's pairs of batch `index` of epoch `epoch`."""
        return self._take(self._plan(epoch)[index], self._rows)


def plan(source_length: np.ndarray, target_length: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Return the pairs of each batch of an epoch, (number of batches, batch_size) int64."""
    rng = np.random.default_rng([seed, epoch])
    num_batches = len(source_length) // batch_size
    order = rng.permutation(len(source_length))[: num_batches * batch_size]
    pool = np.arange(len(order)) // (POOL * batch_size)
    # by target first: the softmax over its vocabulary is the dearest thing to waste on padding
    order = order[np.lexsort((source_length[order], target_length[order], pool))]
    return rng.permutation(order.reshape(num_batches, batch_size))


def _padded(rows: list[list[int]]) -> Tokens:
    length = np.array([len(row) for row in rows])
    ids = np.full((len(rows), length.max()), PAD, np.int32)
    for row, line in zip(ids, rows, strict=True):
        row[: len(line)] = line
    return Tokens(ids, length)


class Pairs(Translation):
    """Your own sentences and translations, in text files of UTF-8, plain or .gz.

    `train`, `val` and `test` are each one file with a sentence, a tab, and its translation on every line
    (what follows a second tab is not read), or two files, of which each line of the second translates the
    same line of the first. Without `val` or `test`, `val_size` and `test_size` of `train` are set aside,
    always the same pairs for the same files. The other arguments are those of `Translation`.
    """

    def __init__(
        self,
        train: PairFiles,
        val: PairFiles | None = None,
        test: PairFiles | None = None,
        val_size: Size = 0.1,
        test_size: Size = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._files = {"train": train, "val": val, "test": test}
        self._sizes = {"val": val_size, "test": test_size}

    def read(self) -> dict[str, Corpus]:
        """Read the files, and set aside what has none of its own."""
        splits = {name: read_pairs(f"data.{name}", files) for name, files in self._files.items() if files}
        for seed, (name, size) in enumerate(self._sizes.items()):
            if name not in splits:
                train = splits["train"]
                labels = np.zeros(len(train.source), np.int64)
                chosen, rest = set_aside(f"data.{name}_size", size, labels, seed, stratify=False)
                splits[name], splits["train"] = train.take(chosen), train.take(rest)
        return splits


def read_pairs(key: str, files: PairFiles) -> Corpus:
    """Read a tab-separated file, or two files aligned by line; `key` names them in errors."""
    if not isinstance(files, str | Path):
        if len(files) != 2:
            raise UserError(f"{key} names {len(files)} files: name one with tabs, or two with the same lines")
        return Corpus.aligned(*(read_lines(Path(file)) for file in files), (str(files[0]), str(files[1])))
    rows = [line.split("\t") for line in read_lines(Path(files))]
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise UserError(f"{files}:{number} has no tab between a sentence and its translation")
    return Corpus.aligned([row[0] for row in rows], [row[1] for row in rows], (str(files), str(files)))
