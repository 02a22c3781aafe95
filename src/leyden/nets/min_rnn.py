"""Minimal recurrent layers, whose gates read the input alone: x (B, T, F) to out (B, T, H) and the next state.

They are those of Feng et al. 2024, "Were RNNs All We Needed?" (arXiv 2410.01201), appendix B.3. Since no gate reads
the state, a sequence is one elementwise recurrence, h_t = (1 - z_t) h_{t-1} + z_t g(v_t), which can be computed in
parallel: as a scan over logarithms, because g, and so every h, is positive.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.nets import recurrence
from leyden.nets.arguments import Probability, State


def g(v: Tensor) -> Tensor:
    """Return the positive activation of appendix B.3: v + 0.5 where v is not negative, else sigmoid(v)."""
    return torch.where(v >= 0, v + 0.5, v.sigmoid())


def log_g(v: Tensor) -> Tensor:
    """Return log(g(v)), accurate also for v far below zero."""
    return torch.where(v >= 0, (v.relu() + 0.5).log(), F.logsigmoid(v))


def scan_in_steps(logit: Tensor, v: Tensor, h0: Tensor | None) -> Tensor:
    """Return h (B, T, H) for the logit of z and v, both (B, T, H), step by step; no `h0` (B, H) means zeros."""
    h0 = torch.zeros_like(v[:, 0]) if h0 is None else h0
    return recurrence.diagonal((-logit).sigmoid(), logit.sigmoid() * g(v), h0)


def scan_in_parallel(logit: Tensor, v: Tensor, h0: Tensor | None) -> Tensor:
    """Return the same as `scan_in_steps` by a scan in log space, a few operations in all."""
    log_h0 = None if h0 is None else h0.clamp_min(torch.finfo(h0.dtype).tiny).log()
    return recurrence.log_scan(F.logsigmoid(-logit), F.logsigmoid(logit) + log_g(v), log_h0)


class MinimalLayer(nn.Module):
    """The base of MinGRU and MinLSTM. The state is (h (B, H),), never negative; None means zeros."""

    num_gates: int

    def __init__(self, input_size: PositiveInt, hidden_size: PositiveInt) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.linear = nn.Linear(input_size, self.num_gates * hidden_size)

    def update(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logit of z and v, (B, T, H) each, for gates (B, T, num_gates * H)."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) for x (B, T, F), and the state after the last."""
        gates = self.linear(x)
        dtype = torch.promote_types(gates.dtype, torch.float32)  # bfloat16 would lose long memories to rounding
        logit, v = self.update(gates.to(dtype))
        # on a CPU, the loop with its hand-written backward is 3.8 times as fast; on a GPU, its launches are slow
        scan = scan_in_parallel if x.is_cuda and x.shape[1] > 1 else scan_in_steps
        h = scan(logit, v, None if state is None else state[0])
        return h.to(x.dtype), (h[:, -1],)


class MinGRU(MinimalLayer):
    """The minGRU of Feng et al. 2024 (section 3.1, appendix B.3.1): z_t = sigmoid(Linear(x_t)), v_t = Linear(x_t)."""

    num_gates = 2

    def update(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logit of z and v, (B, T, H) each."""
        logit, v = gates.chunk(2, -1)
        return logit, v


class MinLSTM(MinimalLayer):
    """The minLSTM of Feng et al. 2024 (section 3.2, appendix B.3.2), whose forget and input gates sum to one.

    With f_t, i_t = sigmoid(Linear(x_t)), they are 1 - z_t = f_t / (f_t + i_t) and z_t = i_t / (f_t + i_t).
    """

    num_gates = 3

    def update(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logit of z, which is log(i / f), and v, (B, T, H) each."""
        f, i, v = gates.chunk(3, -1)
        return F.logsigmoid(i) - F.logsigmoid(f), v


class MinBlock(nn.Module):
    """Convolution, minimal recurrence and MLP, each added to its input: the block of Feng et al. 2024 for text.

    The convolution is causal, over `kernel_size` inputs of each channel. Norms come before the recurrence and
    the MLP. The state is (the last kernel_size - 1 inputs (B, kernel_size - 1, H), h (B, expansion * H)).
    """

    def __init__(
        self,
        size: PositiveInt,
        cell: type[MinimalLayer],
        expansion: PositiveInt = 1,
        kernel_size: PositiveInt = 4,
        mlp_size: PositiveInt = 1024,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(size, size, kernel_size, groups=size)
        self.norm1 = nn.LayerNorm(size)
        self.cell = cell(size, expansion * size)
        self.project = nn.Linear(expansion * size, size)
        self.norm2 = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, mlp_size), nn.GELU(), nn.Linear(mlp_size, size))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the outputs (B, T, H) for x (B, T, H), and the state after the last; no state means zeros."""
        num_before = self.conv.kernel_size[0] - 1
        inputs, h = (x.new_zeros(len(x), num_before, x.shape[2]), None) if state is None else (state[0], state[1:])
        inputs = torch.cat([inputs, x], 1)  # (B, before + T, H)
        x = x + self.dropout(self.conv(inputs.transpose(1, 2)).transpose(1, 2))
        out, h = self.cell(self.norm1(x), h)
        x = x + self.dropout(self.project(out))
        x = x + self.dropout(self.mlp(self.norm2(x)))
        return x, (inputs[:, inputs.shape[1] - num_before :], *h)
