"""A vocabulary of subwords, learned from text by byte-pair encoding."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from leyden.batch import BEGIN, END, PAD, UNKNOWN
from leyden.errors import UserError

NUM_SPECIAL = len((PAD, BEGIN, END, UNKNOWN))  # ids that no text is given


class Subwords:
    """Byte-pair encoding (Sennrich et al. 2016) over bytes, so that any text has ids.

    `decode` gives back what was encoded, but for a space at the start. `size` counts the special ids of
    `leyden.batch`. A pair is merged if it occurs `min_frequency` times or more. Text is normalised to NFC first,
    and to lower case if `lowercase`.
    """

    def __init__(self, size: int, min_frequency: int = 2, lowercase: bool = False) -> None:
        self._size, self._min_frequency, self._lowercase = size, min_frequency, lowercase
        self._tokenizer: Any = None

    def __len__(self) -> int:
        """The number of ids, once learned."""
        return NUM_SPECIAL + self._tokenizer.get_vocab_size() if self._tokenizer else 0

    def learn(self, lines: Sequence[str]) -> None:
        """Choose the subwords that make `lines` short."""
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

        lower = [normalizers.Lowercase()] if self._lowercase else []
        self._tokenizer = _library().Tokenizer(models.BPE())
        self._tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *lower])
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        self._tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self._size - NUM_SPECIAL,
            min_frequency=self._min_frequency,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        self._tokenizer.train_from_iterator(lines, trainer)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Return the ids of each line, none of them special."""
        encodings = self._tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        return [[NUM_SPECIAL + token for token in encoding.ids] for encoding in encodings]

    def decode(self, token: Tensor) -> list[str]:
        """Return the text of each row (B, T), up to its END."""
        return [self._tokenizer.decode(ids).removeprefix(" ") for ids in map(_words, token.tolist())]

    def pieces(self, token: Tensor) -> list[str]:
        """Return the text of each id of a sentence (T,), up to END; an underscore stands where a word begins."""
        return [self._tokenizer.decode([word]).replace(" ", "▁") for word in _words(token.tolist())]

    def state_dict(self) -> str:
        """Return all that was learned, as the tokenizers library writes it in JSON."""
        return self._tokenizer.to_str() if self._tokenizer else ""

    def load_state_dict(self, state: str) -> None:
        """Take what another vocabulary has learned."""
        self._tokenizer = _library().Tokenizer.from_str(state) if state else None


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("subwords need the package tokenizers; pip install 'leyden[text]'") from error
    return tokenizers


def _words(ids: list[int]) -> list[int]:
    """Return the tokenizer's own ids up to END, without the special ones."""
    ids = ids[: ids.index(END)] if END in ids else ids
    return [token - NUM_SPECIAL for token in ids if token >= NUM_SPECIAL]
