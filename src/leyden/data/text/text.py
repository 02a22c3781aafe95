"""Base of the text data sets: a text that is tokenised once and served in windows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning import LightningDataModule
from pydantic import Field, NonNegativeInt, PositiveInt

from leyden.batch import TextBatch
from leyden.data.lines import decode_utf8
from leyden.data.loader import place
from leyden.data.split import Fold, Folds
from leyden.data.text.loader import EvalLoader, StreamLoader, WindowLoader
from leyden.data.text.token_files import Tokens, known, tokenised
from leyden.data.text.tokenizers import Kind, Tokenizer, learn, restore
from leyden.errors import UserError

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Text(LightningDataModule):
    """Base of the text data sets. A subclass says how to `read()` its parts, and what tells its `source()` apart.

    `vocab_size` is what the `tokenizer` must come to; it is made from the training part alone, in lower case if
    `lowercase`, with words (or byte pairs) that occur `min_frequency` times or more, and travels in the checkpoint.
    `window` is T; `batch_size` counts rows over all ranks. If `carry`, a row of a batch goes on in the next one: the
    training part is `batch_size` streams side by side, and evaluation is `eval_streams` of them. Else training draws
    windows at random, and evaluation has `eval_streams` windows in a batch. `limit` trains on the first so many
    windows. In a cross-validation the training and validation parts are joined and cut in `folds` blocks, of which
    `fold` (from 0) is for validation: in blocks, because the neighbours of a window say much of it. The tokenizer is
    made from the other blocks, so `char` and `word` may come to fewer tokens than from all. Without a test part the
    test is on the validation part again, by which the best checkpoint was chosen.
    """

    def __init__(
        self,
        vocab_size: PositiveInt,
        tokenizer: Kind = "byte",
        lowercase: bool = False,
        min_frequency: PositiveInt = 1,
        window: PositiveInt = 128,
        batch_size: PositiveInt = 64,
        eval_streams: PositiveInt = 64,
        carry: bool = True,
        folds: Folds | None = None,
        fold: NonNegativeInt | None = None,
        limit: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        if min_frequency > 1 and tokenizer in ("byte", "char"):
            raise UserError(
                f"data.min_frequency={min_frequency} is for words and byte pairs, not tokenizer={tokenizer}"
            )
        self.vocab_size, self.window, self.carry = vocab_size, window, carry
        self.tokenizer: Tokenizer | None = None  # made by setup(), or from a checkpoint
        self._learning = {"kind": tokenizer, "vocab_size": vocab_size}
        self._learning |= {"lowercase": lowercase, "min_frequency": min_frequency}
        self._fold = Fold.chosen(folds, fold)
        self._batch_size, self._eval_streams, self._limit, self._seed = batch_size, eval_streams, limit, seed
        self._splits: dict[str, Tokens] = {}

    def source(self) -> list[Any]:
        """Return plain data that no other text, or split of it, has."""
        raise NotImplementedError

    def read(self) -> dict[str, str]:
        """Read the parts `train`, `val` and, where there is one, `test`."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Make the token files if they are new; Lightning calls this in one process of each node."""
        self._tokenised()

    def setup(self, stage: str | None = None) -> None:
        """Open the token files, made now if they are new, once; with a checkpoint's tokenizer, if one was loaded."""
        if self._splits:
            return
        self.tokenizer, splits = self._tokenised()
        self._check_size(self.tokenizer)
        if self._limit is not None:
            train, windows = splits["train"], len(splits["train"].ids) // self.window - 1
            if windows < 1:
                raise UserError(
                    f"data.window={self.window} needs {2 * self.window} tokens to train on, but there are "
                    f"{len(train.ids)}: lower it"
                )
            if self._limit > windows:
                raise UserError(f"data.limit={self._limit} is larger than the {windows} windows of the training text")
            if self._limit < self._batch_size:
                raise UserError(
                    f"data.limit={self._limit} windows do not fill a batch of data.batch_size={self._batch_size}"
                )
            splits["train"] = train._replace(ids=train.ids[: (self._limit + 1) * self.window])
        self._splits = splits

    def _tokenised(self) -> tuple[Tokenizer, dict[str, Tokens]]:
        source, given = [*self.source(), *(self._fold or ())], self.tokenizer and self.tokenizer.state_dict()
        held = known({"source": source, "tokenizer": self._learning})
        if held is None or (given and held[0].state_dict() != given):
            held = tokenised({"source": source, "tokenizer": given or self._learning}, self._make)
        return held

    def _make(self) -> tuple[Tokenizer, dict[str, str]]:
        parts = self.read()
        if self._fold:
            parts |= block(parts["train"] + parts["val"], self._fold)
        for name, text in parts.items():
            if not text.strip():
                raise UserError(f"the {name} part of the text is empty")
        tokenizer = self.tokenizer or learn(text=parts["train"], **self._learning)
        self._check_size(tokenizer)  # before all is encoded and written
        return tokenizer, parts

    def _check_size(self, tokenizer: Tokenizer) -> None:
        if self.vocab_size != tokenizer.vocab_size:
            size = tokenizer.vocab_size
            of_all = ", or for every fold data.tokenizer=byte data.vocab_size=256" if self._fold else ""
            raise UserError(
                f"data.vocab_size is {self.vocab_size}, but data.tokenizer={self._learning['kind']} makes "
                f"{size} tokens of the training text: write data.vocab_size={size}{of_all}"
            )

    def fingerprint(self) -> dict[str, dict]:
        """Return the number of tokens of each part, which `setup` opened, and the sha256 of all its token ids."""
        return {name: {"size": len(part.ids), "sha256": part.sha256} for name, part in self._splits.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the tokenizer, so that a checkpoint reads and writes without the text."""
        return {"tokenizer": self.tokenizer.state_dict()} if self.tokenizer else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the tokenizer of a checkpoint."""
        self.tokenizer = restore(state_dict["tokenizer"])

    def train_dataloader(self) -> StreamLoader | WindowLoader:
        """Return the streams, or the windows in random order."""
        loader = StreamLoader if self.carry else WindowLoader
        sizes = {"window": self.window, "batch_size": self._batch_size}
        device, ranks = place(self.trainer)
        return loader(self._splits["train"], **sizes, seed=self._seed, device=device, **ranks)

    def val_dataloader(self) -> EvalLoader:
        """Return the validation part, every token once."""
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        """Return the test part, or the validation part where there is none, every token once."""
        return self._eval_loader("test" if "test" in self._splits else "val")

    def predict_dataloader(self) -> EvalLoader:
        """Return what the test is on."""
        return self.test_dataloader()

    def load_files(self, paths: Sequence[Path]) -> Iterator[tuple[list[str], TextBatch]]:
        """Load text files whole, one in a batch of its own, with its name.

        Raises:
            UserError: when a file is not UTF-8, is shorter than two tokens, or is outside the vocabulary.
        """
        if self.tokenizer is None:
            raise RuntimeError("there is no tokenizer: call setup(), or load_state_dict() with a checkpoint's")
        for path in paths:
            text = read_text(Path(path))
            try:
                ids = torch.from_numpy(self.tokenizer.encode(text).astype("int64"))[None]  # (1, N)
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            if ids.shape[1] < 2:
                raise UserError(f"{path} is shorter than two tokens: there is nothing to predict in it")
            num_targets = ids.shape[1] - 1
            yield [str(path)], TextBatch(ids[:, :-1], ids[:, 1:], False, len(text) / ids.shape[1], float(num_targets))

    def _eval_loader(self, name: str) -> EvalLoader:
        options = {"window": self.window, "num_streams": self._eval_streams, "carry": self.carry}
        device, ranks = place(self.trainer)
        return EvalLoader(self._splits[name], **options, device=device, **ranks)


def read_text(path: Path) -> str:
    """Return the text of a file; UserError when it cannot be read, or is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return decode_utf8(content, path)


def cut(text: str, val_size: float, test_size: float = 0.0) -> dict[str, str]:
    """Set the last characters of a text aside: `val_size` of them, then, at the very end, `test_size`."""
    if val_size + test_size >= 1:
        raise UserError(f"data.val_size={val_size} and data.test_size={test_size} leave nothing to train on")
    first, second = int(len(text) * (1 - val_size - test_size)), int(len(text) * (1 - test_size))
    parts = {"train": text[:first], "val": text[first:second]}
    return {**parts, "test": text[second:]} if test_size else parts


def block(text: str, fold: Fold) -> dict[str, str]:
    """Set one of equally long blocks of a text aside for validation; training is what is before and after it."""
    first, end = (len(text) * k // fold.of for k in (fold.number, fold.number + 1))
    return {"train": text[:first] + text[end:], "val": text[first:end]}
