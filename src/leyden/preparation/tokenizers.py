"""Tokenizers of text: bytes, characters, words and byte-pair encoding, each with a table of pieces.

Token k stands for the bytes `pieces[k]`; a text in UTF-8 is the concatenation of its tokens' pieces. `restore` makes a
tokenizer from its `state_dict()`, which is plain data.
"""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Literal

import numpy as np

from leyden.errors import UserError

Kind = Literal["byte", "char", "word", "bpe"]
LONG_LINE = 100_000  # characters
LINES_AT_ONCE = 10_000  # lines that are encoded together; the library needs 100 bytes or more for each of their tokens
UNKNOWN_WORD = "<unk>"  # as spelled in WikiText and PTB


class Tokenizer(ABC):
    """Turns text into ids (N,) and back. If `lowercase`, texts are lowercased first."""

    pieces: list[bytes]

    def __init__(self, lowercase: bool = False) -> None:
        self._lowercase = lowercase

    @property
    def vocab_size(self) -> int:
        """The number of different ids."""
        return len(self.pieces)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return plain data for `restore`."""

    @abstractmethod
    def _encode(self, text: str) -> np.ndarray: ...

    def encode(self, text: str) -> np.ndarray:
        """Return the ids (N,) of a text.

        Raises:
            UserError: if the text has characters outside the vocabulary.
        """
        return self._encode(text.lower() if self._lowercase else text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.pieces.__getitem__, ids)).decode("utf-8", "replace")

    def stream(self) -> "Stream":
        """Return a decoder that takes ids one by one."""
        return Stream(self.pieces)

    def prompt(self, text: str) -> np.ndarray:
        """Return the ids (N,) of a prompt, one or more; an empty text stands for the beginning of a line."""
        ids = self.encode(text or self._start())
        if not len(ids):
            raise UserError(f"{text!r} holds no token: write a word, or leave it empty")
        return ids

    def _start(self) -> str:
        return "\n"


class Stream:
    """Decodes ids one by one, and buffers the bytes of a character until it is complete."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Return the characters that a token completes."""
        return self._decoder.decode(self._pieces[token])

    def end(self) -> str:
        """Return the text of the bytes that are left in the buffer."""
        return self._decoder.decode(b"", final=True)


class Bytes(Tokenizer):
    """The 256 bytes of UTF-8: no text is outside this vocabulary, and a character may be several tokens."""

    def __init__(self, lowercase: bool = False) -> None:
        super().__init__(lowercase)
        self.pieces = [bytes([value]) for value in range(256)]

    def state_dict(self) -> dict[str, Any]:
        """Return the kind and the option; the vocabulary is always the 256 bytes, so it is not stored."""
        return {"kind": "byte", "lowercase": self._lowercase}

    def _encode(self, text: str) -> np.ndarray:
        # restores bytes that could not be decoded as UTF-8
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)


class Characters(Tokenizer):
    """A vocabulary of single characters, in the order of their code points."""

    def __init__(self, characters: str, lowercase: bool = False) -> None:
        super().__init__(lowercase)
        self._characters = "".join(sorted(set(characters)))
        self.pieces = [character.encode() for character in self._characters]
        code_points = _code_points(self._characters)
        # ids by code point; the last entry is for all other code points
        self._ids = np.full(code_points[-1] + 2, len(code_points), np.int32)
        self._ids[code_points] = np.arange(len(code_points))

    @classmethod
    def learn(cls, text: str, lowercase: bool = False) -> "Characters":
        """Build the vocabulary from the distinct characters of a text."""
        code_points = np.unique(_code_points(text.lower() if lowercase else text))
        return cls(code_points.astype("<u4").tobytes().decode("utf-32-le"), lowercase)

    def state_dict(self) -> dict[str, Any]:
        """Return the characters."""
        return {"kind": "char", "characters": self._characters, "lowercase": self._lowercase}

    def _encode(self, text: str) -> np.ndarray:
        code_points = _code_points(text)
        ids = self._ids[np.minimum(code_points, len(self._ids) - 1)]
        unknown_points = np.unique(code_points[ids == self.vocab_size])
        if len(unknown_points):
            ellipsis = ", …" if len(unknown_points) > 10 else ""
            examples = ", ".join(repr(chr(point)) for point in unknown_points[:10]) + ellipsis
            problem = f"the text has {len(unknown_points)} characters outside the vocabulary: {examples}"
            raise UserError(f"{problem}; it holds {self._characters!r}")
        return ids

    def _start(self) -> str:
        return next((c for c in "\n " if c in self._characters), self._characters[0])


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


class LearnedTokenizer(Tokenizer):
    """A vocabulary of the `tokenizers` library: byte-pair encoding over bytes, or words and line ends.

    Texts are first split at line ends, so that a text of any size can be encoded in parts. A word that is not in the
    vocabulary becomes `<unk>`.
    """

    def __init__(self, kind: Literal["word", "bpe"], library_json: str, lowercase: bool = False) -> None:
        super().__init__(lowercase)
        self._kind, self._json = kind, library_json
        self._tokenizer = _library().Tokenizer.from_str(library_json)
        vocabulary = self._tokenizer.get_vocab()
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        if kind == "bpe":
            byte_of_character = {character: value for value, character in enumerate(_byte_characters())}
            self.pieces = [bytes(byte_of_character[character] for character in piece) for piece in tokens]
        else:
            self.pieces = [b"\n" if word == "\n" else f"{word} ".encode() for word in tokens]

    @classmethod
    def learn(
        cls, kind: Literal["word", "bpe"], lines: Iterable[str], vocab_size: int, lowercase: bool, min_frequency: int
    ) -> "LearnedTokenizer":
        """Choose the `vocab_size` most frequent words, or byte pairs, that occur `min_frequency` times or more."""
        library = _library()
        pre_tokenizers, limits = library.pre_tokenizers, {"vocab_size": vocab_size, "min_frequency": min_frequency}
        if kind == "bpe":
            if vocab_size < 256:
                raise UserError(f"data.vocab_size={vocab_size} with data.tokenizer=bpe: the bytes alone are 256")
            tokenizer = library.Tokenizer(library.models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = library.trainers.BpeTrainer(**limits, initial_alphabet=alphabet, show_progress=False)
        else:
            tokenizer = library.Tokenizer(library.models.WordLevel(unk_token=UNKNOWN_WORD))
            space = library.Regex(r"[^\S\n]+")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(space, "removed")]
            )
            trainer = library.trainers.WordLevelTrainer(**limits, special_tokens=[UNKNOWN_WORD], show_progress=False)
        if lowercase:
            lines = map(str.lower, lines)
        if kind == "word":
            # `<unk>` already has an id, and must not get a second one
            lines = (line.replace(UNKNOWN_WORD, " ") for line in lines)
        tokenizer.train_from_iterator(lines, trainer)
        return cls(kind, tokenizer.to_str(), lowercase)

    def state_dict(self) -> dict[str, Any]:
        """Return the library's description of the tokenizer, as JSON."""
        return {"kind": self._kind, "tokenizers": self._json, "lowercase": self._lowercase}

    def encode_each(self, lines: Iterable[str]) -> Iterator[list[int]]:
        """Yield the ids of each line."""
        if self._lowercase:
            lines = map(str.lower, lines)
        lines = (line.encode("utf-8", "replace").decode() for line in lines)  # replaces lone surrogates
        while batch := list(islice(lines, LINES_AT_ONCE)):
            yield from (line.ids for line in self._tokenizer.encode_batch_fast(batch))

    def _encode(self, text: str) -> np.ndarray:
        return np.fromiter(chain.from_iterable(self.encode_each(_lines(text))), np.int32)


def _lines(text: str) -> Iterator[str]:
    """Split a text after each line feed, and very long lines before a space, where a token always begins."""
    start = 0
    while start < len(text):
        end = text.find("\n", start, start + LONG_LINE) + 1
        if not end and len(text) - start > LONG_LINE:
            end = text.rfind(" ", start + 1, start + LONG_LINE)
            while end > start and text[end - 1].isspace():  # several spaces may be one token
                end = text.rfind(" ", start + 1, end)
        end = end if end > start else text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


def _byte_characters() -> list[str]:
    """Return the printable characters that byte-level BPE writes for the 256 bytes (GPT-2, Radford et al. 2019)."""
    printable_bytes = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    substitutes = iter(range(256, 512))
    return [chr(value if value in printable_bytes else next(substitutes)) for value in range(256)]


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError("words and byte pairs need the tokenizers library: pip install 'leyden[text]'") from None
    return tokenizers


def learn(kind: Kind, text: str, vocab_size: int, lowercase: bool = False, min_frequency: int = 1) -> Tokenizer:
    """Learn a tokenizer from the training text."""
    if kind == "byte":
        return Bytes(lowercase)
    if kind == "char":
        return Characters.learn(text, lowercase)
    return LearnedTokenizer.learn(kind, _lines(text), vocab_size, lowercase, min_frequency)


def restore(state: dict[str, Any]) -> Tokenizer:
    """Build a tokenizer from its `state_dict()`."""
    if state["kind"] == "byte":
        return Bytes(state["lowercase"])
    if state["kind"] == "char":
        return Characters(state["characters"], state["lowercase"])
    return LearnedTokenizer(state["kind"], state["tokenizers"], state["lowercase"])
