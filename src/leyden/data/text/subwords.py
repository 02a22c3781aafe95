"""A vocabulary of subwords for sentences, which stand alone and begin and end with special tokens."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from leyden.batch import BEGIN, END, PAD, UNKNOWN
from leyden.data.text.tokenizers import Learned, restore

NUM_SPECIAL = len((PAD, BEGIN, END, UNKNOWN))  # ids that no text is given


class Subwords:
    """Byte-pair encoding (Sennrich et al. 2016) over bytes, so that any sentence has ids; empty until `learn`.

    `decode` gives back what was encoded, but for a space at the start. `size` counts the special ids of
    `leyden.batch`. A pair is merged if it occurs `min_frequency` times or more. Text is normalised to NFC first,
    and to lower case if `lowercase`.
    """

    def __init__(self, size: int, min_frequency: int = 2, lowercase: bool = False) -> None:
        self._options = {"vocab_size": size - NUM_SPECIAL, "min_frequency": min_frequency, "lowercase": lowercase}
        self._tokenizer: Any = None

    def __len__(self) -> int:
        """The number of ids, once learned."""
        return NUM_SPECIAL + self._tokenizer.vocab_size if self._tokenizer else 0

    def learn(self, lines: Iterable[str]) -> None:
        """Choose the subwords that make `lines` short."""
        self._tokenizer = Learned.learn("bpe", map(_spaced, lines), **self._options)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Return the ids of each line, none of them special."""
        return [[NUM_SPECIAL + token for token in ids] for ids in self._tokenizer.encode_each(map(_spaced, lines))]

    def decode(self, token: Tensor) -> list[str]:
        """Return the text of each row (B, T), up to its END."""
        return [self._tokenizer.decode(ids).removeprefix(" ") for ids in map(_words, token.tolist())]

    def pieces(self, token: Tensor) -> list[str]:
        """Return the text of each id of a sentence (T,), up to END; an underscore stands where a word begins."""
        return [self._tokenizer.decode([word]).replace(" ", "▁") for word in _words(token.tolist())]

    def state_dict(self) -> dict[str, Any]:
        """Return all that was learned, as plain data."""
        return self._tokenizer.state_dict() if self._tokenizer else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what another vocabulary has learned."""
        self._tokenizer = restore(state) if state else None


def _spaced(line: str) -> str:
    """Return the line in NFC, with a space at its start, so that its first word is what it is anywhere else."""
    line = unicodedata.normalize("NFC", line)
    return line if line.startswith(" ") or not line else f" {line}"


def _words(ids: list[int]) -> list[int]:
    """Return the tokenizer's own ids up to END, without the special ones."""
    ids = ids[: ids.index(END)] if END in ids else ids
    return [token - NUM_SPECIAL for token in ids if token >= NUM_SPECIAL]
