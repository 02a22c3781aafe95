"""Texts that are classified as a whole."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from leyden.errors import UserError
from leyden.preparation.texts import COLUMN, TABLES, read_rows, read_text
from leyden.preparation.tokenizers import Tokenizer, restore
from leyden.schema.field import Arrays, Field, Item, Sketch


class Passage(Field):
    """A text; its first `max_length` tokens are read. `state` is the state of its tokenizer.

    `column` is the column of a table that holds the texts; `length` sketches the lengths of the training texts, in
    tokens, before they are truncated.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".md", *TABLES)

    kind: str = "passage"
    state: dict[str, Any]
    column: str = COLUMN
    max_length: int
    length: Sketch

    def items_of_file(self, path: Path) -> Iterable[Item]:
        """List the rows of a table, or the one text of another file."""
        if path.suffix.lower() in TABLES:
            return (Item(name, value) for name, value in read_rows(path, self.column))
        return [Item(str(path), read_text(path))]

    def items_of_value(self, value: Any) -> Iterable[Item]:
        """Treat a text as one sample."""
        if not isinstance(value, str):
            raise UserError(f"a {type(value).__name__} is not a text")
        return [Item("row 0", value)]

    def prepare(self, item: Item) -> tuple[np.ndarray, str | None]:
        """Return the token ids (N,) of a text, 1 to `max_length`."""
        ids = self.tokenizer.encode(item.value)
        if not len(ids):
            raise UserError(f"{item.name} holds no word")
        is_truncated = len(ids) > self.max_length
        return ids[: self.max_length], f"only its first {self.max_length} tokens are read" if is_truncated else None

    def collate(self, rows: Sequence[np.ndarray]) -> Arrays:
        """Return the `token` (B, T) int64, padded with zeros, and the `length` (B,) of each text."""
        length = np.array([len(ids) for ids in rows])
        token = np.zeros((len(rows), length.max()), np.int64)
        for row, ids in zip(token, rows, strict=True):
            row[: len(ids)] = ids
        return {"token": token, "length": length}

    def describe(self) -> str:
        """Describe the tokens and their number."""
        kind, size = self.state.get("kind"), self.tokenizer.vocab_size
        return (
            f"texts of up to {self.max_length} tokens, of {size:,} ({kind}); training texts have {self.length.mean:.3g}"
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that `state` describes."""
        return restore(self.state)
