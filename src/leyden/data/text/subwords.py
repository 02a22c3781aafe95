"""A vocabulary of subwords for sentences, which stand alone and begin and end with special tokens."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from leyden.batch import BEGIN, END, PAD, UNKNOWN
from leyden.data.text.tokenizers import Learned, restore

NUM_SPECIAL = len((PAD, BEGIN, END, UNKNOWN))  # ids that stand for no text


class Subwords:
    """Byte-pair encoding (Sennrich et al. 2016) over bytes, so that any sentence has ids; empty until `learn`.

    `decode` returns the text that was encoded, except for a space at its start. `size` includes the special ids of
    `leyden.batch`. A pair of subwords is merged if it occurs `min_frequency` times or more. Text is normalised to NFC
    first, and to lower case if `lowercase`.
    """

    def __init__(self, size: int, min_frequency: int = 2, lowercase: bool = False) -> None:
        self._options = {"vocab_size": size - NUM_SPECIAL, "min_frequency": min_frequency, "lowercase": lowercase}
        self._tokenizer: Any = None

    def __len__(self) -> int:
        """The number of ids; 0 before `learn`."""
        return NUM_SPECIAL + self._tokenizer.vocab_size if self._tokenizer else 0

    def learn(self, lines: Iterable[str]) -> None:
        """Choose the subwords that make `lines` short."""
        self._tokenizer = Learned.learn("bpe", map(_spaced, lines), **self._options)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Return the ids of each line, none of them special."""
        return [[NUM_SPECIAL + token for token in ids] for ids in self._tokenizer.encode_each(map(_spaced, lines))]

    def decode(self, token: Tensor) -> list[str]:
        """Return the text of each row (B, T), up to its END."""
        return [self._tokenizer.decode(ids).removeprefix(" ") for ids in map(_tokenizer_ids, token.tolist())]

    def pieces(self, token: Tensor) -> list[str]:
        """Return the text of each id of a sentence (T,), up to END; `▁` marks the beginning of a word."""
        return [self._tokenizer.decode([word]).replace(" ", "▁") for word in _tokenizer_ids(token.tolist())]

    def state_dict(self) -> dict[str, Any]:
        """Return the vocabulary as plain data."""
        return self._tokenizer.state_dict() if self._tokenizer else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of another vocabulary."""
        self._tokenizer = restore(state) if state else None


def _spaced(line: str) -> str:
    """Return the line in NFC, with a space at its start, so that its first word is encoded as it is anywhere else."""
    line = unicodedata.normalize("NFC", line)
    return line if line.startswith(" ") or not line else f" {line}"


def _tokenizer_ids(ids: list[int]) -> list[int]:
    """Return the tokenizer's ids of a sentence up to END, without the special ones."""
    ids = ids[: ids.index(END)] if END in ids else ids
    return [token - NUM_SPECIAL for token in ids if token >= NUM_SPECIAL]
