"""Text as tokens: documents, whose likelihood a language model computes, and sentences to translate."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from math import exp, log
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from leyden.errors import UserError
from leyden.preparation.lines import read_lines
from leyden.preparation.subwords import END, PAD, Subwords
from leyden.preparation.texts import TABLES, read_rows, read_text
from leyden.preparation.tokenizers import Tokenizer, restore
from leyden.schema.field import Arrays, Field, Item, Sketch

MAX_CHARACTERS = 100_000  # a longer document is split into parts, each with an answer
MAX_TOKENS = 1 << 18  # tokens in a batch of documents, including padding


class Text(Field):
    """A document. `state` is the state of its tokenizer; `window` is the number of tokens that a net reads at once."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".md", *TABLES)

    kind: str = "text"
    state: dict[str, Any]
    window: int
    carry: bool  # whether the net's state carries over from one window to the next
    num_tokens: int  # tokens in the training text
    chars_per_token: float

    def items_of_file(self, path: Path) -> Iterable[Item]:
        """List the rows of a table, or the text of another file, in parts if it is very long."""
        if path.suffix.lower() in TABLES:
            return (Item(name, value) for name, value in read_rows(path))
        parts = list(split_text(read_text(path)))
        if len(parts) == 1:
            return [Item(str(path), parts[0][1])]
        return (Item(f"{path}[{start}:{start + len(part)}]", part) for start, part in parts)

    def items_of_value(self, value: Any) -> Iterable[Item]:
        """Treat a text as one sample."""
        if not isinstance(value, str):
            raise UserError(f"a {type(value).__name__} is not a text")
        return [Item("row 0", value)]

    def prepare(self, item: Item) -> tuple[tuple[np.ndarray, int], str | None]:
        """Return the token ids (N,) of a text, two or more, and its number of characters."""
        try:
            ids = self.tokenizer.encode(item.value)
        except UserError as error:
            raise UserError(f"{item.name}: {error}") from error
        if len(ids) < 2:
            raise UserError(f"{item.name} is shorter than two tokens: there is nothing to predict in it")
        return (ids, len(item.value)), None

    def batches(self, rows: Sequence[tuple[np.ndarray, int]]) -> Iterator[list[int]]:
        """Yield documents of similar length together."""
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]), i))
        while order:
            count = max(1, MAX_TOKENS // len(rows[order[0]][0]))
            yield order[:count]
            order = order[count:]

    def collate(self, rows: Sequence[tuple[np.ndarray, int]]) -> Arrays:
        """Return the `token` (B, T) int64, padded, and the `length` (B,) and `chars_per_token` (B,) of each."""
        length = np.array([len(ids) for ids, _ in rows])
        token = np.zeros((len(rows), length.max()), np.int64)
        for row, (ids, _) in zip(token, rows, strict=True):
            row[: len(ids)] = ids
        return {"token": token, "length": length, "chars_per_token": np.array([n for _, n in rows]) / length}

    def describe(self) -> str:
        """Describe the tokens."""
        kind, size = self.state.get("kind"), self.tokenizer.vocab_size
        return f"text as {size:,} tokens ({kind}), {self.chars_per_token:.3g} characters each"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that `state` describes."""
        return restore(self.state)


class Likelihood(Field):
    """The likelihood of a text."""

    kind: str = "likelihood"

    def to_records(self, answers: Arrays, samples: Arrays) -> list[list[dict[str, Any]]]:
        """Return the `nats_per_token`, the `perplexity` and the `bits_per_char` of each text."""
        if not {"nats", "num_targets"} <= answers.keys():
            return super().to_records(answers, samples)
        columns = (answers["nats"], answers["num_targets"], samples["chars_per_token"])
        return [[likelihood(*row)] for row in zip(*(column.tolist() for column in columns), strict=True)]


class Sentence(Field):
    """A sentence. `state` is the state of its subwords; `length` sketches the training sentences' lengths in tokens."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".gz", *TABLES)

    kind: str = "sentence"
    state: dict[str, Any]
    max_length: int  # number of tokens
    length: Sketch

    def items_of_file(self, path: Path) -> Iterable[Item]:
        """List the lines of a text file, or the rows of a table."""
        if path.suffix.lower() in TABLES:
            return (Item(name, value) for name, value in read_rows(path))
        return (Item(f"{path}:{number}", line) for number, line in enumerate(read_lines(path), 1))

    def items_of_value(self, value: Any) -> Iterable[Item]:
        """Treat a text as one sentence."""
        if not isinstance(value, str):
            raise UserError(f"a {type(value).__name__} is not a sentence")
        return [Item("row 0", value)]

    def prepare(self, item: Item) -> tuple[list[int], str | None]:
        """Return the token ids of a sentence, followed by END."""
        [ids] = self.vocabulary.encode([item.value])
        if (length := len(ids) + 1) > self.max_length:
            advice = f"set that to {length} or more, or shorten the line"
            raise UserError(
                f"{item.name} is {length} tokens long, more than data.max_length={self.max_length}: {advice}"
            )
        return [*ids, END], None

    def collate(self, rows: Sequence[list[int]]) -> Arrays:
        """Return the `source` (B, S) int64 and the `source_length` (B,)."""
        ids, length = pad(rows)
        return {"source": ids.astype(np.int64), "source_length": length}

    def to_records(self, answers: Arrays, samples: Arrays) -> list[list[dict[str, Any]]]:
        """Return the `translation` of each sentence, from its token ids."""
        if "token" not in answers:
            return super().to_records(answers, samples)
        return [[{"translation": text}] for text in self.vocabulary.decode(answers["token"].tolist())]

    def describe(self) -> str:
        """Describe the subwords and their number."""
        return f"sentences of up to {self.max_length} tokens, of {len(self.vocabulary):,} subwords"

    @cached_property
    def vocabulary(self) -> Subwords:
        """The subwords that `state` describes."""
        return Subwords.restore(self.state)


def likelihood(nats: float, num_targets: int, chars_per_token: float) -> dict[str, float]:
    """Return the likelihood of a text in several units, from the summed loss of its tokens."""
    loss = nats / num_targets
    return {
        "nats_per_token": loss,
        "perplexity": exp(min(loss, 700.0)),  # exp of more would overflow
        "bits_per_char": loss / chars_per_token / log(2),
    }


def pad(rows: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Pad the ids of sentences to the longest one; return them (N, T) int32, and their lengths (N,)."""
    length = np.array([len(row) for row in rows])
    ids = np.full((len(rows), length.max()), PAD, np.int32)
    for padded_row, row in zip(ids, rows, strict=True):
        padded_row[: len(row)] = row
    return ids, length


def split_text(text: str) -> Iterator[tuple[int, str]]:
    """Split a text into parts of at most MAX_CHARACTERS, at a space or line end; yield each with its start."""
    start = 0
    while start < len(text) or not start:
        end = start + MAX_CHARACTERS
        if end < len(text):
            end = max(text.rfind(space, end - MAX_CHARACTERS // 10, end) for space in " \n")
            end = end if end > start else start + MAX_CHARACTERS
        yield start, text[start:end]
        start = max(end, 1)
