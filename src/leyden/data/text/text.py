"""Base of the text data sets: a text that is tokenised once and served in windows."""

from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt

from leyden.batch import NO_TARGET, TextBatch
from leyden.data.base import Data
from leyden.data.text.loader import StreamLoader, TextEvalLoader, TextTrainLoader, WindowLoader
from leyden.data.text.token_files import Tokens, load_tokens, tokenise_once
from leyden.errors import UserError
from leyden.folds import Fold
from leyden.preparation.tokenizers import Kind, Tokenizer, learn
from leyden.schema import text as fields
from leyden.schema.field import Arrays
from leyden.schema.schema import Schema

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Text(Data):
    """Base of the text data sets. A subclass defines how to `read()` its parts, and what identifies its `source()`.

    `vocab_size` must be the number of tokens of the `tokenizer`, which is learned from the training part alone, in
    lower case if `lowercase`, with words (or byte pairs) that occur `min_frequency` times or more, and stored in the
    checkpoint. `window` is T; the samples of a batch are rows of T tokens. If `carry`, a row of a batch continues in
    the next one: the training part is `batch_size` streams side by side, and evaluation is `eval_streams` of them.
    Otherwise training draws windows at random, and evaluation has `eval_streams` windows in a batch. `limit` trains on
    that many of the first windows. In a cross-validation the training and validation parts are joined and cut into
    `folds` blocks, not windows, because a window is similar to the next. The tokenizer is learned from the other
    blocks, so the kinds `char` and `word` may have fewer tokens than they have for the whole text. Without a test part,
    the test uses the validation part, on which the best checkpoint was also chosen. The other arguments are those of
    `Data`.
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
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_streams, **kwargs)
        if min_frequency > 1 and tokenizer in ("byte", "char"):
            kinds = f"words and byte pairs, not tokenizer={tokenizer}"
            raise UserError(f"data.min_frequency={min_frequency} is for {kinds}")
        self.vocab_size, self.window, self.carry = vocab_size, window, carry
        self._new_tokenizer: Tokenizer | None = None  # learned by setup(), unless a checkpoint holds one
        self._tokenizer_options = {"kind": tokenizer, "vocab_size": vocab_size}
        self._tokenizer_options |= {"lowercase": lowercase, "min_frequency": min_frequency}

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None before it is learned."""
        if self.schema is None:
            return self._new_tokenizer
        assert isinstance(self.schema.input, fields.Text)
        return self.schema.input.tokenizer

    def source(self) -> list[Any]:
        """Return plain data that identifies this text and its split."""
        raise NotImplementedError

    def read(self) -> dict[str, str]:
        """Read the parts `train`, `val` and, if there is one, `test`."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Download missing files and make the token files; Lightning calls this in one process of each node."""
        super().prepare_data()
        self._load_or_tokenise()

    def to_batch(self, arrays: Arrays) -> TextBatch:
        """Return a batch of documents; its targets are the next tokens, and NO_TARGET past each end."""
        token, length = (torch.from_numpy(arrays[name]) for name in ("token", "length"))
        step = torch.arange(token.shape[1] - 1)
        target = token[:, 1:].masked_fill(step >= length[:, None] - 1, NO_TARGET)
        chars_per_target = float(arrays["chars_per_token"].mean())
        return TextBatch(token[:, :-1], target, False, chars_per_target, float((length - 1).double().mean()))

    def _make_splits(self) -> dict[str, Tokens]:
        """Open the token files, or make them if they are missing, with a checkpoint's tokenizer if one was loaded."""
        self._new_tokenizer, splits = self._load_or_tokenise()
        self._check_size(self._new_tokenizer)
        if self._limit is not None:
            train, num_windows = splits["train"], len(splits["train"].ids) // self.window - 1
            if num_windows < 1:
                tokens = f"{2 * self.window} tokens to train on, but there are {len(train.ids)}"
                raise UserError(f"data.window={self.window} needs {tokens}: lower it")
            self._check_limit(num_windows, "windows of the training text")
            if self._limit < self._batch_size:
                batch = f"a batch of data.batch_size={self._batch_size}"
                raise UserError(f"data.limit={self._limit} windows do not fill {batch}")
            splits["train"] = train._replace(ids=train.ids[: (self._limit + 1) * self.window])
        return splits

    def _make_schema(self) -> Schema:
        train = self._splits["train"]
        assert self._new_tokenizer is not None
        text = fields.Text(
            state=self._new_tokenizer.state_dict(),
            window=self.window,
            carry=self.carry,
            num_tokens=len(train.ids),
            chars_per_token=train.chars_per_token,
        )
        return Schema(input=text, answer=fields.Likelihood())

    def _load_or_tokenise(self) -> tuple[Tokenizer, dict[str, Tokens]]:
        source = [*self.source(), *(self._fold or ())]
        state = self.tokenizer and self.tokenizer.state_dict()
        result = load_tokens({"source": source, "tokenizer": self._tokenizer_options})
        if result is None or (state and result[0].state_dict() != state):
            identity = {"source": source, "tokenizer": state or self._tokenizer_options}
            result = tokenise_once(identity, self._read_and_learn)
        return result

    def _read_and_learn(self) -> tuple[Tokenizer, dict[str, str]]:
        parts = self.read()
        if self._fold:
            parts |= cut_block(parts["train"] + parts["val"], self._fold)
        for name, text in parts.items():
            if not text.strip():
                raise UserError(f"the {name} part of the text is empty")
        tokenizer = self.tokenizer or learn(text=parts["train"], **self._tokenizer_options)
        self._check_size(tokenizer)  # before everything is encoded and written
        return tokenizer, parts

    def _check_size(self, tokenizer: Tokenizer) -> None:
        if self.vocab_size != tokenizer.vocab_size:
            size = tokenizer.vocab_size
            reason = f"data.tokenizer={self._tokenizer_options['kind']} makes {size} tokens of the training text"
            alternative = ", or for every fold data.tokenizer=byte data.vocab_size=256" if self._fold else ""
            advice = f"write data.vocab_size={size}{alternative}"
            raise UserError(f"data.vocab_size is {self.vocab_size}, but {reason}: {advice}")

    def _describe(self, split: Tokens) -> dict[str, Any]:
        return {"size": len(split.ids), "sha256": split.sha256}

    def _train_loader(self, device: torch.device, ranks: dict[str, int]) -> TextTrainLoader:
        loader = StreamLoader if self.carry else WindowLoader
        sizes = {"window": self.window, "batch_size": self._batch_size}
        return loader(self._splits["train"], **sizes, seed=self._seed, device=device, **ranks)

    def _eval_loader(self, name: str, device: torch.device, ranks: dict[str, int]) -> TextEvalLoader:
        options = {"window": self.window, "num_streams": self._eval_batch_size, "carry": self.carry}
        return TextEvalLoader(self._splits[name], **options, device=device, **ranks)


def cut_end(text: str, val_size: float, test_size: float = 0.0) -> dict[str, str]:
    """Set the last characters of a text aside: the fraction `val_size`, then, at the very end, `test_size`."""
    if val_size + test_size >= 1:
        raise UserError(f"data.val_size={val_size} and data.test_size={test_size} leave nothing to train on")
    val_start, test_start = int(len(text) * (1 - val_size - test_size)), int(len(text) * (1 - test_size))
    parts = {"train": text[:val_start], "val": text[val_start:test_start]}
    return {**parts, "test": text[test_start:]} if test_size else parts


def cut_block(text: str, fold: Fold) -> dict[str, str]:
    """Set a block of a text aside for validation; the text before and after it is for training."""
    first, end = (len(text) * k // fold.num_folds for k in (fold.number, fold.number + 1))
    return {"train": text[:first] + text[end:], "val": text[first:end]}
