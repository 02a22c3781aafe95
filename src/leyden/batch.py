"""What models and data share: the batch types, and the token ids that mean the same everywhere.

A batch is cut twice before a net sees it: the ranks share it, and `cut` makes parts of a rank's share. Where rows have
unequal numbers of targets, `targets_per_row`, the mean over the whole batch, lets each piece weigh what it is worth: a
loss summed over a piece, divided by its rows times that, averages over all pieces to the mean over all targets.
"""

from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from leyden.errors import UserError

PAD, BEGIN, END, UNKNOWN = range(4)  # token ids of padded sentences
NO_TARGET = -100  # where there is nothing to predict; torch's cross-entropy leaves it out


class ImageBatch(NamedTuple):
    """Images with one label each."""

    image: Tensor  # (B, C, H, W) float, normalised
    label: Tensor  # (B,) int64 class index, or (B, K) float class weights after mixup or cutmix


class SequenceBatch(NamedTuple):
    """Sequences of unequal length with one label each."""

    input: Tensor  # (B, T, F) float, normalised; zero past each end
    length: Tensor  # (B,) int64: the steps of each, 1 to T
    label: Tensor  # (B,) int64 class index


class TextBatch(NamedTuple):
    """Windows of text, and the same one token further."""

    token: Tensor  # (B, T) int64
    target: Tensor  # (B, T) int64; NO_TARGET where there is none
    carry: bool  # every row goes on where it ended in the batch before: the hidden state is carried over
    chars_per_target: float  # how many characters a target stands for
    targets_per_row: float  # on the average of all ranks' rows

    @property
    def num_tokens(self) -> int:
        """How many tokens are predicted, in training."""
        return self.target.numel()


class PairBatch(NamedTuple):
    """Sentences and their translations, as token ids."""

    source: Tensor  # (B, S) int64: words, END, then PAD
    source_length: Tensor  # (B,) int64, END counted
    target: Tensor  # (B, T) int64: BEGIN, words, END, then PAD
    target_length: Tensor  # (B,) int64, BEGIN and END counted
    targets_per_row: float  # on the average of all ranks' rows

    @property
    def num_tokens(self) -> float:
        """How many tokens are predicted, on the average of all ranks."""
        return len(self.target) * self.targets_per_row


class SeriesBatch(NamedTuple):
    """Windows of time series, what came after each, and what the seasonal-naive forecast would have said."""

    past: Tensor  # (B, P, F) float, scaled: the K series to forecast, other series, then masks (1: known) if any
    future: Tensor  # (B, H, K) float: the series to forecast, scaled
    observed: Tensor  # (B, H, K) bool: where the future is known and not filled in
    seasonal: Tensor  # (B, H, K) the values one season before (the last season known, repeated)
    naive_error: Tensor  # (1, K) mean absolute error of the seasonal-naive forecast on the training part, for MASE
    start: Tensor  # (B,) int64: when the future begins, on the data's clock
    targets_per_row: float  # values observed, on the average of all ranks' rows


def cut(batch: Any, parts: int) -> list[tuple[Any, float]]:
    """Cut a batch into parts of nearly equal size; return them, each with its share of the rows.

    A batch is a tensor, or tuples, lists and dicts of them. Every tensor has a row for each sample; what has one row
    or none, numbers and None go with every part. There are no more parts than rows.

    Raises:
        UserError: when a batch holds anything else, or tensors of different lengths.
    """
    if parts == 1:
        return [(batch, 1.0)]
    fields, structure = tree_flatten(batch)
    for field in fields:
        if not isinstance(field, Tensor | bool | int | float | None):
            raise UserError(f"accumulate={parts}: a batch holds a {type(field).__name__}, which cannot be cut in parts")
    lengths = {len(field) for field in fields if isinstance(field, Tensor) and field.ndim} - {1}
    if len(lengths) > 1:
        counts = " and ".join(map(str, sorted(lengths)))
        raise UserError(f"accumulate={parts}: a batch holds tensors of {counts} rows, and so cannot be cut in parts")
    size = lengths.pop() if lengths else 1
    edges = [size * part // min(parts, size) for part in range(min(parts, size) + 1)]

    def rows(first: int, end: int) -> Any:
        cut_fields = [x[first:end] if isinstance(x, Tensor) and x.ndim and len(x) == size else x for x in fields]
        return tree_unflatten(cut_fields, structure)

    return [(rows(first, end), (end - first) / size) for first, end in pairwise(edges)]
