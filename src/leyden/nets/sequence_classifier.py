"""Recurrent classification of sequences: input (B, T, F) with their lengths to logits (B, K)."""

from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from leyden.nets.arguments import Probability
from leyden.nets.recurrent import LockedDropout, Recurrent, final, steps


class SequenceClassifier(nn.Module):
    """A recurrent stack, pooling of its outputs over the steps of each sequence, and a linear layer.

    `pool` is the `mean` over the steps, their `max`, or the `last` output. `input_dropout` drops features of the input
    for a whole sequence, `output_dropout` those of the pooled vector. The other arguments are those of `Recurrent`.
    """

    def __init__(
        self,
        input_size: PositiveInt,
        num_classes: PositiveInt,
        hidden_size: PositiveInt = 64,
        pool: Literal["mean", "max", "last"] = "mean",
        input_dropout: Probability = 0.0,
        output_dropout: Probability = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.input_dropout = LockedDropout(input_dropout)
        self.recurrent = Recurrent(input_size, hidden_size, **kwargs)
        self.output_dropout = nn.Dropout(output_dropout)
        self.head = nn.Linear(self.recurrent.output_size, num_classes)
        self.pool = pool

    def features(self, x: Tensor, length: Tensor) -> Tensor:
        """Return the pooled outputs, (B, H)."""
        out, _ = self.recurrent(self.input_dropout(x), length=length)  # (B, T, H), zero past each end
        if self.pool == "mean":
            return out.sum(1) / length[:, None]
        if self.pool == "max":
            return out.masked_fill((steps(x) >= length[:, None])[:, :, None], -torch.inf).amax(1)
        return final(out, length, bidirectional=len(self.recurrent.backward_layers) > 0)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        """Return the logits (B, K) of sequences (B, T, F) of `length` (B,)."""
        return self.head(self.output_dropout(self.features(x, length)))
