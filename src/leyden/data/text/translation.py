"""Base of the translation data sets: sentences and their translations as subwords."""

import json
import logging
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import PositiveInt

from leyden.batch import PairBatch
from leyden.data.base import Data, sha256
from leyden.data.indexed import OrderedLoader
from leyden.data.split import set_aside
from leyden.data.text.pair_loader import BucketLoader, PaddedTokens, PairStore
from leyden.errors import UserError
from leyden.preparation.subwords import BEGIN, END, NUM_SPECIAL, Subwords
from leyden.schema.field import Arrays, Sketch
from leyden.schema.schema import Schema
from leyden.schema.text import Sentence, pad

log = logging.getLogger(__name__)

MAX_SKETCHED = 10_000  # largest number of sentences whose lengths are sketched


class SentencePairs(NamedTuple):
    """Sentences, their translations, and where they are in the files."""

    source: list[str]
    target: list[str]
    files: list[tuple[str, str]]  # the file of each sentence, and that of its translation
    line: list[int]  # line numbers in both files, from 1

    @classmethod
    def from_lines(cls, source: list[str], target: list[str], files: tuple[str, str]) -> "SentencePairs":
        """Pair the lines of two files; UserError if one file has more."""
        if len(source) != len(target):
            reason = "each line must be the translation of the same line"
            raise UserError(f"{files[0]} has {len(source)} lines, but {files[1]} has {len(target)}: {reason}")
        return cls(source, target, [files] * len(source), list(range(1, len(source) + 1)))

    def take(self, index: np.ndarray) -> "SentencePairs":
        """Return the pairs `index`, in the order of the files."""
        index = np.sort(index).tolist()
        return SentencePairs(*([column[i] for i in index] for column in self))

    def join(self, other: "SentencePairs") -> "SentencePairs":
        """Return the pairs of both in the order of their lines, however they were split."""
        rows = sorted([*zip(*self, strict=True), *zip(*other, strict=True)], key=itemgetter(3))
        return SentencePairs(*map(list, zip(*rows, strict=True)))


class Translation(Data):
    """Base of the translation data sets. A subclass defines how to `read()` its files into train, val and test.

    In a cross-validation, train and val together are cut into `folds`, always the same pairs for the same files. Both
    languages have a vocabulary of subwords, learned from the training part alone (all of it, whatever `limit`), and the
    checkpoint holds both. `source_vocab_size` and `target_vocab_size` must be their sizes. Pairs of subwords that occur
    `min_frequency` times or more are merged, in lower case if `lowercase`. `max_length` is the longest sentence in
    tokens: longer training pairs are left out with a warning, and a longer pair in another part is an error. Batches
    hold sentences of similar length, drawn from (seed, epoch). The other arguments are those of `Data`.
    """

    def __init__(
        self,
        source_vocab_size: PositiveInt,
        target_vocab_size: PositiveInt,
        lowercase: bool = False,
        min_frequency: PositiveInt = 2,
        max_length: PositiveInt = 100,
        batch_size: PositiveInt = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        self.source_vocab_size, self.target_vocab_size = source_vocab_size, target_vocab_size
        min_size = NUM_SPECIAL + 256
        for key, size in (("source", source_vocab_size), ("target", target_vocab_size)):
            if size < min_size:
                minimum = f"the {min_size} that bytes and special tokens take"
                raise UserError(f"data.{key}_vocab_size={size} is smaller than {minimum}")
        self._max_length, self._min_frequency, self._lowercase = max_length, min_frequency, lowercase

    def read(self) -> dict[str, SentencePairs]:
        """Read the pairs of `train`, `val` and `test` from their files."""
        raise NotImplementedError

    def to_batch(self, arrays: Arrays) -> PairBatch:
        """Return a batch of sentences, with empty translations."""
        source, length = (torch.from_numpy(arrays[name]) for name in ("source", "source_length"))
        target = torch.tensor([[BEGIN, END]]).expand(len(source), 2)
        return PairBatch(source, length, target, torch.full_like(length, 2), 1.0)

    @property
    def vocabularies(self) -> tuple[Subwords, Subwords]:
        """The vocabularies of the sentences and of the translations."""
        assert self.schema is not None, "call setup() first"
        sides = self.schema.input, self.schema.answer
        source, target = (side.vocabulary for side in sides if isinstance(side, Sentence))
        return source, target

    def _make_splits(self) -> dict[str, SentencePairs]:
        """Read the files; keep all training pairs for the vocabularies, whatever the limit."""
        splits = self.read()
        if self._fold:
            all_pairs = splits["train"].join(splits["val"])
            labels = np.zeros(len(all_pairs.source), np.int64)
            val, rest = set_aside("data.folds", self._fold, labels, 0, stratify=False)
            splits |= {"train": all_pairs.take(rest), "val": all_pairs.take(val)}
        train = self._all_train_pairs = splits["train"]
        self._check_limit(len(train.source), "training pairs")
        if self._limit is not None:
            order = np.random.default_rng(0).permutation(len(train.source))
            splits["train"] = train.take(order[: self._limit])
        return splits

    def _make_schema(self) -> Schema:
        source = self._learn("source", self.source_vocab_size, self._all_train_pairs.source)
        target = self._learn("target", self.target_vocab_size, self._all_train_pairs.target)
        return Schema(input=source, answer=target)

    def _learn(self, key: str, size: int, lines: list[str]) -> Sentence:
        """Learn a vocabulary; UserError if its size is not the one in the config."""
        vocabulary = Subwords.learn(lines, size, self._min_frequency, self._lowercase)
        if size != len(vocabulary):
            reason = f"the training text with data.min_frequency={self._min_frequency} makes {len(vocabulary)} tokens"
            raise UserError(f"data.{key}_vocab_size is {size}, but {reason}: set it to {len(vocabulary)}")
        sampled_lines = lines[:: -(-len(lines) // MAX_SKETCHED)]
        lengths = np.array([len(ids) + 1 for ids in vocabulary.encode(sampled_lines)])
        state = vocabulary.state_dict()
        return Sentence(state=state, max_length=self._max_length, length=Sketch.of(lengths))

    def _describe(self, split: SentencePairs) -> dict[str, Any]:
        """Return a split's size and sha256, and the sha256 of the target vocabulary, on which token losses depend."""
        vocabulary = json.dumps(self.vocabularies[1].state_dict(), sort_keys=True)
        text = "\n".join([*split.source, *split.target])
        return {"size": len(split.source), "sha256": sha256(text.encode()), "tokens": sha256(vocabulary.encode())}

    def _train_loader(self, device: torch.device, ranks: dict[str, int]) -> BucketLoader:
        source, target = self._encode_split("train")
        is_short = np.maximum(source.length, target.length) <= self._max_length
        if not is_short.all():
            message = "%d of %d training pairs are longer than data.max_length=%d tokens and are left out"
            log.warning(message, (~is_short).sum(), len(is_short), self._max_length)
            sides = (source, target)
            source, target = (PaddedTokens(s.ids[is_short, : self._max_length], s.length[is_short]) for s in sides)
        make_batch = PairStore(source, target, device)
        return BucketLoader(
            make_batch, source.length, target.length, batch_size=self._batch_size, seed=self._seed, **ranks
        )

    def _eval_loader(self, name: str, device: torch.device, ranks: dict[str, int]) -> OrderedLoader[PairBatch]:
        """Return the pairs of a split, the shortest first."""
        source, target = self._encode_split(name)
        order = np.lexsort((target.length, source.length))
        make_batch = PairStore(
            *(PaddedTokens(side.ids[order], side.length[order]) for side in (source, target)), device
        )
        return OrderedLoader(make_batch, len(order), batch_size=self._eval_batch_size, **ranks)

    def _encode_split(self, name: str) -> tuple[PaddedTokens, PaddedTokens]:
        split = self._splits[name]
        source_vocabulary, target_vocabulary = self.vocabularies
        source = PaddedTokens(*pad([[*ids, END] for ids in source_vocabulary.encode(split.source)]))
        target = PaddedTokens(*pad([[BEGIN, *ids, END] for ids in target_vocabulary.encode(split.target)]))
        if name != "train":
            for side, tokens in enumerate((source, target)):
                lines = zip(split.files, split.line, strict=True)
                self._check_length(tokens, [f"{files[side]}:{line}" for files, line in lines])
        return source, target

    def _check_length(self, tokens: PaddedTokens, names: list[str]) -> None:
        longest = int(tokens.length.argmax())
        if (length := tokens.length[longest]) > self._max_length:
            advice = f"set that to {length} or more, or shorten the line"
            limit = f"data.max_length={self._max_length}"
            raise UserError(f"{names[longest]} is {length} tokens long, more than {limit}: {advice}")
