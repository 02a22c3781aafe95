"""What models and data share: the batch types, and the token ids that mean the same everywhere."""

from typing import NamedTuple

from torch import Tensor

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
    num_chars: float  # how many characters the targets stand for


class PairBatch(NamedTuple):
    """Sentences and their translations, as token ids."""

    source: Tensor  # (B, S) int64: words, END, then PAD
    source_length: Tensor  # (B,) int64, END counted
    target: Tensor  # (B, T) int64: BEGIN, words, END, then PAD
    target_length: Tensor  # (B,) int64, BEGIN and END counted


class SeriesBatch(NamedTuple):
    """Windows of time series, what came after each, and what the seasonal-naive forecast would have said."""

    past: Tensor  # (B, P, F) float, scaled: the K series to forecast, other series, then masks (1: known) if any
    future: Tensor  # (B, H, K) float: the series to forecast, scaled
    observed: Tensor  # (B, H, K) bool: where the future is known and not filled in
    seasonal: Tensor  # (B, H, K) the values one season before (the last season known, repeated)
    naive_error: Tensor  # (K,) mean absolute error of the seasonal-naive forecast on the training part, for MASE
    start: Tensor  # (B,) int64: when the future begins, on the data's clock
