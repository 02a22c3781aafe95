"""Simple recurrences: the hidden state is a linear map of the input and the previous hidden state."""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from leyden.nets import recurrence
from leyden.nets.arguments import State

Nonlinearity = Literal["none", "tanh", "relu"]
FUNCTION = {"none": lambda x: x, "tanh": torch.tanh, "relu": torch.relu}


class RNN(nn.Module):
    """A linear RNN: hidden state and log-probabilities are each one linear map of cat(input, hidden).

    With `nonlinearity`, tanh or ReLU follows the map to the hidden state. The output reads the hidden state before
    the step, so that all outputs of a sequence are one matrix product. The state is (h (B, H),), at first zero.
    """

    def __init__(
        self,
        input_size: PositiveInt,
        hidden_size: PositiveInt,
        output_size: PositiveInt,
        nonlinearity: Nonlinearity = "none",
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.nonlinearity = nonlinearity
        self.i2h = nn.Linear(input_size + hidden_size, hidden_size)
        self.i2o = nn.Linear(input_size + hidden_size, output_size)

    def step(self, input: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities (B, V) and the next hidden state (B, H), for input (B, F)."""
        combined = torch.cat([input, hidden], 1)
        return self.i2o(combined).log_softmax(1), FUNCTION[self.nonlinearity](self.i2h(combined))

    def forward(self, input: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the log-probabilities (B, T, V) for input (B, T, F), and the state after the last.

        Integers (B, T) stand for one-hot rows; no state means zeros.
        """
        weight = self.i2h.weight
        h0 = weight.new_zeros(len(input), self.hidden_size) if state is None else state[0]
        if input.shape[1] == 1:  # in generation, the code around the recurrence costs more than the step itself
            x = input if input.is_floating_point() else nn.functional.one_hot(input, self.input_size).to(weight.dtype)
            log_proba, hidden = self.step(x[:, 0], h0)
            return log_proba[:, None], (hidden,)
        w_ih, w_hh = weight.split([self.input_size, self.hidden_size], 1)
        h = recurrence.elman(input, h0, w_ih, w_hh, self.i2h.bias, self.nonlinearity)  # (B, T, H)
        # the code below is time-major like the recurrence, so that only the result is transposed in memory
        previous_h = torch.cat([h0[None].to(h.dtype), h.transpose(0, 1)[:-1]])
        w_io, w_ho = self.i2o.weight.split([self.input_size, self.hidden_size], 1)
        logits = recurrence.linear_or_lookup(input.transpose(0, 1), w_io, self.i2o.bias) + nn.functional.linear(
            previous_h, w_ho
        )
        return logits.log_softmax(2).transpose(0, 1), (h[:, -1],)


class ElmanLayer(nn.Module):
    """The recurrence of Elman 1990 as a layer: h_t = f(W x_t + b + U h_{t-1} + d). The state is (h (B, H),)."""

    def __init__(self, input_size: PositiveInt, hidden_size: PositiveInt, nonlinearity: Nonlinearity = "tanh") -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.nonlinearity = input_size, hidden_size, nonlinearity
        self.i2h = nn.Linear(input_size, hidden_size)
        self.h2h = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) for x (B, T, F), and the state after the last; no state means zeros."""
        h0 = self.h2h.weight.new_zeros(len(x), self.hidden_size) if state is None else state[0]
        bias = self.i2h.bias + self.h2h.bias
        h = recurrence.elman(x, h0, self.i2h.weight, self.h2h.weight, bias, self.nonlinearity)
        return h, (h[:, -1],)
