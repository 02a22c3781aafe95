"""Gated recurrent layers: x (B, T, F) and a state to out (B, T, H) and the next state."""

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.nets import recurrence
from leyden.nets.arguments import Probability, State

MIN_LOOKUP_SIZE = 8192  # smallest B x H for which, on a CPU, looking up rows of gates is faster than torch's kernel


class GatedLayer(nn.Module):
    """The base of LSTM and GRU, whose gates are linear maps of the input and of the hidden state.

    `weight_drop` is dropout on the hidden-to-hidden weight (Merity et al. 2018, section 2): in training, all steps of a
    call share one mask.
    """

    num_gates: int

    def __init__(self, input_size: PositiveInt, hidden_size: PositiveInt, weight_drop: Probability = 0.0) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.weight_drop = input_size, hidden_size, weight_drop
        self.i2h = nn.Linear(input_size, self.num_gates * hidden_size)
        self.h2h = nn.Linear(hidden_size, self.num_gates * hidden_size)


class LSTM(GatedLayer):
    """A plain LSTM with gates in the order in, forget, cell, out. The state is (h (B, H), c (B, H))."""

    num_gates = 4

    def forward(self, x: Tensor, state: State | None = None, embedding: Tensor | None = None) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) for x (B, T, F), and the final state; no `state` means zeros.

        Integers x (B, T) are row numbers of `embedding` (V, F); without it they stand for one-hot rows.
        """
        if state is None:
            zeros = self.h2h.weight.new_zeros(len(x), self.hidden_size)
            state = (zeros, zeros)
        w_ih, b_ih, b_hh = self.i2h.weight, self.i2h.bias, self.h2h.bias
        w_hh = F.dropout(self.h2h.weight, self.weight_drop, self.training)
        is_token = not x.is_floating_point()
        if is_token and x.device.type == "cpu" and x.shape[1] > 1 and len(x) * self.hidden_size >= MIN_LOOKUP_SIZE:
            bias = b_ih + b_hh
            table = w_ih.t() + bias if embedding is None else F.linear(embedding, w_ih, bias)
            out, h, c = recurrence.lstm_lookup(x, table, *state, w_hh)
        else:
            x = x if embedding is None else F.embedding(x, embedding)
            out, h, c = recurrence.lstm(x, *state, w_ih, w_hh, b_ih, b_hh)
        return out, (h, c)


class GRU(GatedLayer):
    """The gated recurrent unit of Cho et al. 2014, as in `torch.nn.GRU`: gates in the order reset, update, new.

    The state is (h (B, H),).
    """

    num_gates = 3

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) for x (B, T, F), and the final state; no `state` means zeros."""
        h0 = self.h2h.weight.new_zeros(len(x), self.hidden_size) if state is None else state[0]
        w_hh = F.dropout(self.h2h.weight, self.weight_drop, self.training)
        out, h = recurrence.gru(x, h0, self.i2h.weight, w_hh, self.i2h.bias, self.h2h.bias)
        return out, (h,)
