"""A vocabulary of subwords for single sentences, which begin and end with special tokens."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from leyden.preparation.tokenizers import LearnedTokenizer, Tokenizer, restore

PAD, BEGIN, END, UNKNOWN = range(4)  # special ids
NUM_SPECIAL = 4


class Subwords:
    """Byte-pair encoding (Sennrich et al. 2016) over bytes, so that any sentence has ids.

    `decode` returns the text that was encoded, except for a space at its start. Text is normalised to NFC first.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer: Any = tokenizer

    @classmethod
    def learn(cls, lines: Iterable[str], size: int, min_frequency: int = 2, lowercase: bool = False) -> "Subwords":
        """Learn subwords from `lines`, in lower case if `lowercase`.

        `size` includes the special ids. A pair of subwords is merged if it occurs `min_frequency` times or more.
        """
        return cls(LearnedTokenizer.learn("bpe", map(_with_space, lines), size - NUM_SPECIAL, lowercase, min_frequency))

    @classmethod
    def restore(cls, state: dict[str, Any]) -> "Subwords":
        """Build a vocabulary from its `state_dict()`."""
        return cls(restore(state))

    def __len__(self) -> int:
        """Return the number of ids."""
        return NUM_SPECIAL + self._tokenizer.vocab_size

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Return the ids of each line, without special ones."""
        return [[NUM_SPECIAL + token for token in ids] for ids in self._tokenizer.encode_each(map(_with_space, lines))]

    def decode(self, rows: Sequence[list[int]]) -> list[str]:
        """Return the text of each row of ids, up to its END."""
        return [self._tokenizer.decode(ids).removeprefix(" ") for ids in map(_tokenizer_ids, rows)]

    def pieces(self, ids: list[int]) -> list[str]:
        """Return the text of each id of a sentence, up to END; `▁` marks the beginning of a word."""
        return [self._tokenizer.decode([token]).replace(" ", "▁") for token in _tokenizer_ids(ids)]

    def state_dict(self) -> dict[str, Any]:
        """Return the vocabulary as plain data."""
        return self._tokenizer.state_dict()


def _with_space(line: str) -> str:
    """Normalise a line to NFC and begin it with a space, so that its first word is encoded like any other word."""
    line = unicodedata.normalize("NFC", line)
    return line if line.startswith(" ") or not line else f" {line}"


def _tokenizer_ids(ids: list[int]) -> list[int]:
    """Return the tokenizer's ids of a sentence up to END, without the special ones."""
    ids = ids[: ids.index(END)] if END in ids else ids
    return [token - NUM_SPECIAL for token in ids if token >= NUM_SPECIAL]
