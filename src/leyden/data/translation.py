"""Sentences and their translations: Multi30k, and the user's own."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import DirectoryPath, FilePath, NonNegativeInt, PositiveInt

from leyden.batch import BEGIN, END, PAD, PairBatch
from leyden.data.download import Files, Remote
from leyden.data.indexed import OrderedLoader
from leyden.data.lines import read_lines, split_lines
from leyden.data.loader import Loader, check_divides
from leyden.data.split import Size, set_aside
from leyden.data.subwords import NUM_SPECIAL, Subwords
from leyden.errors import UserError

log = logging.getLogger(__name__)

PairFiles = FilePath | list[FilePath]  # one with tabs, or two aligned by line

POOL = 50  # batches whose sentences are sorted by length together


class Corpus(NamedTuple):
    """Sentences, their translations, and where they stand."""

    source: list[str]
    target: list[str]
    line: list[int]  # in the files, from 1
    files: tuple[str, str]

    @classmethod
    def aligned(cls, source: list[str], target: list[str], files: tuple[str, str]) -> "Corpus":
        """Pair lines with lines; UserError if one file has more."""
        if len(source) != len(target):
            raise UserError(
                f"{files[0]} has {len(source)} lines, but {files[1]} has {len(target)}: "
                f"each line must be the translation of the same line"
            )
        return cls(source, target, list(range(1, len(source) + 1)), files)

    def take(self, index: np.ndarray) -> "Corpus":
        """Return the pairs `index`, in the order of the files."""
        chosen = np.sort(index).tolist()
        return Corpus(*([part[i] for i in chosen] for part in self[:3]), self.files)


class Tokens(NamedTuple):
    """The token ids of one side, and how many there are."""

    ids: np.ndarray  # (N, T) int32, PAD past each end
    length: np.ndarray  # (N,) int64


class Translation(LightningDataModule):
    """Base of the translation data sets. A subclass says how to `read()` its files into train, val and test.

    Both sides have a vocabulary of subwords, learned from the training part alone (all of it, whatever
    `limit`); they travel in the checkpoint. `source_vocab_size` and `target_vocab_size` are what these must
    come to; pairs of subwords are merged that occur `min_frequency` times or more, in lower case if `lowercase`.
    `max_length` is the longest sentence in tokens: longer training pairs are left out with a warning, a longer
    one elsewhere is an error. `batch_size` and `eval_batch_size` (default: the same) count sentences over all
    ranks. `limit` trains on that many pairs. Batches hold sentences of similar length, drawn from (seed, epoch).
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
        self._min_frequency = min_frequency
        self._splits: dict[str, Corpus] = {}

    def read(self) -> dict[str, Corpus]:
        """Read the pairs of `train`, `val` and `test` from their files."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the files, and learn the vocabularies unless they came from a checkpoint; once."""
        if self._splits:
            return
        splits = self.read()
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
        """Return the size and sha256 (over source lines, then target lines) of each split, which `setup` made."""
        prints = {}
        for name, corpus in self._splits.items():
            digest = hashlib.sha256("\n".join([*corpus.source, *corpus.target]).encode())
            prints[name] = {"size": len(corpus.source), "sha256": digest.hexdigest()}
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
        take = PairStore(source, target, self._device())
        return BucketLoader(
            take, source.length, target.length, batch_size=self._batch_size, seed=self._seed, **self._ranks()
        )

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
        take = PairStore(*(Tokens(part.ids[order], part.length[order]) for part in (source, target)), self._device())
        return OrderedLoader(take, len(order), batch_size=self._eval_batch_size, **self._ranks())

    def _tokens(self, name: str) -> tuple[Tokens, Tokens]:
        corpus = self._splits[name]
        source = _padded([[*ids, END] for ids in self.source_vocabulary.encode(corpus.source)])
        target = _padded([[BEGIN, *ids, END] for ids in self.target_vocabulary.encode(corpus.target)])
        if name != "train":
            for tokens, file in zip((source, target), corpus.files, strict=True):
                self._check_length(tokens, [f"{file}:{line}" for line in corpus.line])
        return source, target

    def _check_length(self, tokens: Tokens, names: list[str]) -> None:
        if tokens.length.max() > self._max_length:
            worst = int(tokens.length.argmax())
            raise UserError(
                f"{names[worst]} is {tokens.length[worst]} tokens long, more than data.max_length={self._max_length}: "
                f"set that to {tokens.length[worst]} or more, or shorten the line"
            )

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _ranks(self) -> dict[str, int]:
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size} if self.trainer else {}


class PairStore:
    """Token ids on one device; called with indices, it gives their batch, padded to its own longest sentences."""

    def __init__(self, source: Tokens, target: Tokens, device: torch.device) -> None:
        self._device = device
        self._lengths = source.length, target.length  # on the host, so that nobody waits for the device
        self._tokens = [torch.from_numpy(array).to(device) for array in (*source, *target)]

    def __call__(self, index: np.ndarray) -> PairBatch:
        """Return the batch of the pairs `index`."""
        rows = torch.from_numpy(index).to(self._device, non_blocking=True)
        source, source_length, target, target_length = self._tokens
        longest, longest_target = (int(length[index].max()) for length in self._lengths)
        return PairBatch(
            source[:, :longest].index_select(0, rows).long(),
            source_length.index_select(0, rows),
            target[:, :longest_target].index_select(0, rows).long(),
            target_length.index_select(0, rows),
        )


class BucketLoader(Loader[PairBatch]):
    """Shuffled batches of pairs of similar length; a smaller last batch is left out.

    An epoch's order, drawn from (seed, epoch), is sorted by length within pools of POOL batches, and the
    batches are shuffled. `batch_size` is global: the ranks take a pair each in turn.
    """

    def __init__(
        self,
        take: Callable[[np.ndarray], PairBatch],
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
        return self._take(self._plan(epoch)[index, self._rows])


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


Language = Literal["en", "de", "fr", "cs"]
PARTS = {"train": "train", "val": "val", "test": "test_2016_flickr"}
MULTI30K = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
DIGESTS = {  # sha256 of the unpacked text
    ("train", "en"): "460a15fbd157e34a7a9957ee388c1ca247fe47af3ef25fb50442af6c274e0fc6",
    ("train", "de"): "2c2b73fd2b548fbcde3a875e0a78d6ee94d498bfdee6bd3eae3945779e9ddf72",
    ("train", "fr"): "5925a3c18f1587b6b54b87743106e6e8ab93618edb6f65d19eac0621f853a10d",
    ("train", "cs"): "2be68b38c8d586ff4f54eb13cc6e1baaaa053695b3f070d3038303a47f2268da",
    ("val", "en"): "1f2a23d992769b5b3d209b0a10dd0b77c08cceb1f20dfb97ed0aafa49d107227",
    ("val", "de"): "660e09eb7e1da2f856ea13ee5ad3cf6d36b3d5b0b733c857e94c5747a3dfc660",
    ("val", "fr"): "5304e444d842e962b2dda4d816b70b22a1765b15401642b7ca37a67477e708dc",
    ("val", "cs"): "d53827e469b0a1ca8d57e9e26b2b64c4bc4b33f5479c7b03ae87ae5c882c3e33",
    ("test_2016_flickr", "en"): "399a4382932c1aadd3ceb9bef1008d388a64c76d4ae4e9d4728c6f4301cac182",
    ("test_2016_flickr", "de"): "4be6b5b3236b79c25475c6bb829800a7ce559e9ba7a1f6c2394fe4d40be46d16",
    ("test_2016_flickr", "fr"): "cb3160d69b002bb638e66cc7612fcd56cb0af82eadc9c142dedc438afb885ef6",
    ("test_2016_flickr", "cs"): "45adb85f688de8407fddcbe1b36dca15d12aab868149b337e2576f2d6d2ff8d8",
}


class Multi30k(Translation):
    """Captions of pictures in four languages (Elliott et al. 2016, task 1): 29,000 train, 1,014 val, 1,000 test.

    The files lie in `data_dir`/multi30k, by default in $LEYDEN_DATA or ~/.cache/leyden; what is missing is
    downloaded. For research and education, not for commercial use. The other arguments are those of `Translation`.
    """

    def __init__(
        self, source: Language = "de", target: Language = "en", data_dir: DirectoryPath | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if source == target:
            raise UserError(f"data.source and data.target are both {source}: choose two languages")
        self._remotes = {name: (remote(part, source), remote(part, target)) for name, part in PARTS.items()}
        self._files = Files("multi30k", tuple(chain(*self._remotes.values())), data_dir=data_dir)

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process of each node."""
        self._files.fetch()

    def read(self) -> dict[str, Corpus]:
        """Read the six files, proved by their digests."""
        splits = {}
        for name, remotes in self._remotes.items():
            (path, content), (other, translated) = map(self._files.prove, remotes)
            sides = split_lines(content, path), split_lines(translated, other)
            splits[name] = Corpus.aligned(*sides, (str(path), str(other)))
        return splits


def remote(part: str, language: str) -> Remote:
    """Return one file of Multi30k, the train, val or test_2016_flickr part in one language."""
    name = f"{part}.{language}.gz"
    return Remote(name, f"sha256:{DIGESTS[part, language]}", (f"{MULTI30K}/{name}",), unpacked=True)


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
