"""Stacks of recurrent layers over padded sequences: x (B, T, F) to out (B, T, H), or to logits (B, K)."""

from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.errors import UserError
from leyden.nets.arguments import Probability, State
from leyden.nets.lstm import GRU, LSTM
from leyden.nets.min_rnn import MinGRU, MinLSTM
from leyden.nets.rnn import ElmanLayer

Cell = Literal["lstm", "gru", "rnn", "mingru", "minlstm"]

LAYER = {"lstm": LSTM, "gru": GRU, "rnn": ElmanLayer, "mingru": MinGRU, "minlstm": MinLSTM}


class Recurrent(nn.Module):
    """A stack of `num_layers` recurrent layers; `rnn` is Elman's layer with tanh.

    A bidirectional layer reads the sequence in both directions and returns both outputs, forward first: 2H in all.
    `dropout` between layers has one mask for all steps of a sequence (Gal & Ghahramani 2016); `weight_drop` is dropout
    on hidden-to-hidden weights (Merity et al. 2018), for lstm and gru. With `layer_norm` every layer's output is
    normalised; with `residual` every layer after the first adds its input to it.
    """

    def __init__(
        self,
        input_size: PositiveInt,
        hidden_size: PositiveInt,
        num_layers: PositiveInt = 1,
        cell: Cell = "lstm",
        bidirectional: bool = False,
        dropout: Probability = 0.0,
        weight_drop: Probability = 0.0,
        layer_norm: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if weight_drop and cell not in ("lstm", "gru"):
            raise UserError(
                f"weight_drop={weight_drop} drops hidden-to-hidden weights of lstm and gru; set it to 0 for cell={cell}"
            )
        self.input_size, self.hidden_size = input_size, hidden_size
        self.output_size = 2 * hidden_size if bidirectional else hidden_size
        sizes = [input_size] + [self.output_size] * (num_layers - 1)
        options = {"weight_drop": weight_drop} if weight_drop else {}
        self.layers = nn.ModuleList(LAYER[cell](size, hidden_size, **options) for size in sizes)
        self.backward_layers = nn.ModuleList(
            LAYER[cell](size, hidden_size, **options) for size in sizes if bidirectional
        )
        self.norms = nn.ModuleList(nn.LayerNorm(self.output_size) if layer_norm else nn.Identity() for _ in sizes)
        self.dropout = LockedDropout(dropout)
        self.residual = residual

    def forward(
        self, x: Tensor, state: State | None = None, length: Tensor | None = None, embedding: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """Return the outputs (B, T, output_size) of the last layer, and the state after the last step.

        The state lists the states of the layers in order; None means zeros. With `length` (B,), outputs past a row's
        end are zero, the values of x there have no effect, and no state is returned. A bidirectional stack neither
        takes nor returns a state. With `embedding` (V, F), x (B, T) holds indices of its rows, which an LSTM looks up
        after the product with its input weights.
        """
        if state is not None and self.backward_layers:
            raise ValueError("a bidirectional stack reads whole sequences: it takes no state")
        is_lookup = embedding is not None and isinstance(self.layers[0], LSTM) and length is None
        if embedding is not None and not is_lookup:
            x = F.embedding(x, embedding)
        is_past_end = None if length is None else (positions(x) >= length[:, None])[:, :, None]  # (B, T, 1)
        if is_past_end is not None:
            x = x.masked_fill(is_past_end, 0)
        new_state: list[Tensor] = []
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            layer_input = self.dropout(x) if index else x
            options = {"embedding": embedding} if is_lookup and not index else {}
            out, layer_state = layer(layer_input, _layer_state(state, index, len(self.layers)), **options)
            if self.backward_layers:
                backward_out, _ = self.backward_layers[index](reverse(layer_input, length), **options)
                out = torch.cat([out, reverse(backward_out, length)], 2)
            out = norm(out)
            x = x + out if self.residual and index else out
            new_state.extend(layer_state)
        if is_past_end is not None:
            x = x.masked_fill(is_past_end, 0)
        return x, None if self.backward_layers or length is not None else tuple(new_state)


class LockedDropout(nn.Module):
    """Dropout of the same features at every step of a sequence x (B, T, F) (Gal & Ghahramani 2016)."""

    def __init__(self, p: Probability) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return x; in training, some of its features are dropped and the others scaled up."""
        if not self.training or not self.p:
            return x
        mask = x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(1 - self.p)
        return x * mask.div_(1 - self.p)


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
            return out.masked_fill((positions(x) >= length[:, None])[:, :, None], -torch.inf).amax(1)
        return last_output(out, length, bidirectional=len(self.recurrent.backward_layers) > 0)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        """Return the logits (B, K) of sequences (B, T, F) of `length` (B,)."""
        return self.head(self.output_dropout(self.features(x, length)))


def positions(x: Tensor) -> Tensor:
    """Return the positions 0 to T - 1 of x (B, T, F), (1, T) int64."""
    return torch.arange(x.shape[1], device=x.device)[None]


def reverse(x: Tensor, length: Tensor | None) -> Tensor:
    """Return x (B, T, F) with the first `length` (B,) steps of each row in reverse order; None means all."""
    if length is None:
        return x.flip(1)
    position = positions(x)
    source = torch.where(position < length[:, None], length[:, None] - 1 - position, position)  # (B, T)
    return x.gather(1, source[:, :, None].expand_as(x))


def last_output(out: Tensor, length: Tensor | None = None, bidirectional: bool = False) -> Tensor:
    """Return the output (B, H) of each row's last step, for outputs (B, T, H) and `length` (B,); None means all T.

    For a bidirectional stack, it is the forward half at the last step and the backward half at the first.
    """
    output = out[:, -1] if length is None else out[torch.arange(len(out), device=out.device), length - 1]
    if not bidirectional:
        return output
    half = out.shape[2] // 2
    return torch.cat([output[:, :half], out[:, 0, half:]], 1)


def _layer_state(state: State | None, index: int, num_layers: int) -> State | None:
    """Return the state of one layer."""
    if state is None:
        return None
    size = len(state) // num_layers
    return state[index * size : (index + 1) * size]
