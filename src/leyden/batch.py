"""The batch types that models and data share.

A batch is split twice: over the ranks, then on each rank into microbatches (`split_microbatches`). If rows have
different numbers of targets, the loss of a microbatch is the sum over its targets, divided by the number of its rows
times `targets_per_row`, the mean number over the whole batch. The average of these losses over all microbatches is then
the mean over all targets.
"""

from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from leyden.errors import UserError

NO_TARGET = -100  # marks a position without a target; it is the default ignore_index of cross_entropy


class ImageBatch(NamedTuple):
    """Images and their targets."""

    image: Tensor  # (B, C, H, W) float, normalised
    # (B,) int64 class index; (B, K) float class weights after mixup or cutmix; (B, L) float 0 or 1 for each of L
    # labels; or (B,) float, scaled, for regression
    label: Tensor


class SequenceBatch(NamedTuple):
    """Sequences of unequal length and their targets."""

    input: Tensor  # (B, T, F) float, normalised; zero past each end
    length: Tensor  # (B,) int64: number of steps, 1 to T
    label: Tensor  # (B,) int64 class index; or (B,) float, scaled, for regression


class PassageBatch(NamedTuple):
    """Texts, as token ids, and their targets."""

    token: Tensor  # (B, T) int64; zero past each end
    length: Tensor  # (B,) int64: number of tokens, 1 to T
    label: Tensor  # as in `ImageBatch`, without class weights


class TextBatch(NamedTuple):
    """Windows of text, and the same windows shifted by one token as targets."""

    token: Tensor  # (B, T) int64
    target: Tensor  # (B, T) int64; NO_TARGET where there is none
    carry: bool  # whether each row continues the same row of the previous batch, so the hidden state is kept
    chars_per_target: float  # mean number of characters per target
    targets_per_row: float  # mean number of targets per row, over all ranks

    @property
    def num_tokens(self) -> int:
        """The number of tokens that are predicted in training."""
        return self.target.numel()


class PairBatch(NamedTuple):
    """Sentences and their translations, as token ids."""

    source: Tensor  # (B, S) int64: words, END, then PAD
    source_length: Tensor  # (B,) int64, including END
    target: Tensor  # (B, T) int64: BEGIN, words, END, then PAD
    target_length: Tensor  # (B,) int64, including BEGIN and END
    targets_per_row: float  # mean number of targets per row, over all ranks

    @property
    def num_tokens(self) -> float:
        """The number of tokens that are predicted, averaged over the ranks."""
        return len(self.target) * self.targets_per_row


class SeriesBatch(NamedTuple):
    """Windows of time series, the values that follow each, and their seasonal-naive forecast."""

    past: Tensor  # (B, P, F) float, scaled: the K series to forecast, other series, then masks (1: known) if any
    future: Tensor  # (B, H, K) float: the series to forecast, scaled
    observed: Tensor  # (B, H, K) bool: where the future was measured and not filled in
    seasonal: Tensor  # (B, H, K) float: the values one season earlier (the last known season, repeated)
    naive_error: Tensor  # (1, K) mean absolute error of the seasonal-naive forecast on the training part, for MASE
    start: Tensor  # (B,) int64: time step of the whole series at which the future begins
    targets_per_row: float  # mean number of observed values per row, over all ranks


def split_microbatches(batch: Any, parts: int) -> list[tuple[Any, float]]:
    """Split a batch into parts of nearly equal size; return each with its share of the rows.

    A batch is a tensor, or a nest of tuples, lists and dicts of tensors, with a row for each sample. Scalar tensors,
    tensors with one row, numbers and None go into every part. A batch with fewer rows than `parts` is split into single
    rows.

    Raises:
        UserError: if a batch holds anything else, or tensors of different lengths.
    """
    if parts == 1:
        return [(batch, 1.0)]
    fields, structure = tree_flatten(batch)
    for field in fields:
        if not isinstance(field, Tensor | bool | int | float | None):
            raise UserError(f"accumulate={parts}: a batch holds a {type(field).__name__}, which cannot be split")
    lengths = {len(field) for field in fields if isinstance(field, Tensor) and field.ndim} - {1}
    if len(lengths) > 1:
        counts = " and ".join(map(str, sorted(lengths)))
        raise UserError(f"accumulate={parts}: a batch holds tensors of {counts} rows, and so cannot be split")
    size = lengths.pop() if lengths else 1
    edges = [size * part // min(parts, size) for part in range(min(parts, size) + 1)]

    def slice_rows(first: int, end: int) -> Any:
        selected_fields = [x[first:end] if isinstance(x, Tensor) and x.ndim and len(x) == size else x for x in fields]
        return tree_unflatten(selected_fields, structure)

    return [(slice_rows(first, end), (end - first) / size) for first, end in pairwise(edges)]
