"""Recurrences over whole sequences, batch first, with their gradients written by hand where that is faster.

Each function computes what its step-by-step loop would. `x` is (B, T, F), or integers (B, T) that stand for one-hot
rows. Rounding errors add up over the steps, so half precision is computed in float32, except in torch's own kernels.
Second derivatives are not supported.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# backward passes of activations: (gradient, output, grad_input=the tensor to write to)
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_relu_backward = functools.partial(torch.ops.aten.threshold_backward.grad_input, threshold=0)
BLOCK_ROWS = 1024  # rows of gates in a block: enough for a full-speed product, few enough for the cache
KERNELS = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}


def linear_or_lookup(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return W x + b (…, H) for every x (…, F), or every one-hot row that integers x (…) stand for."""
    if x.is_floating_point():
        return F.linear(x, weight, bias)
    if x.numel() < weight.shape[1]:
        return F.embedding(x, weight.t()) + bias
    return F.embedding(x, (weight.t() + bias).contiguous())


def elman(x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor, nonlinearity: str = "tanh") -> Tensor:
    """Return h (B, T, H) with h_t = f(W_ih x_t + W_hh h_{t-1} + b); f is tanh, relu or none (Elman 1990)."""
    if x.is_cuda and nonlinearity != "none":
        return _run_kernel(KERNELS[nonlinearity], x, (h0,), [w_ih, w_hh, bias, torch.zeros_like(bias)])[0]
    u = linear_or_lookup(x.transpose(0, 1), w_ih, bias)
    return _apply_in_float32(_Elman, u, w_hh, h0, nonlinearity).transpose(0, 1)


def diagonal_scan(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """Return h (B, T, H) with h_t = a_t h_{t-1} + b_t, elementwise, for a and b (B, T, H) and h_0 (B, H).

    It launches T kernels, which is slow on a GPU; see `log_scan`.
    """
    return _apply_in_float32(_Diagonal, a, b, h0)


def log_scan(log_a: Tensor, log_b: Tensor, log_h0: Tensor | None = None) -> Tensor:
    """Return what `diagonal_scan` does for positive a, b and h_0 (B, H), from their logarithms; no h_0 means zeros.

    This is the scan of Feng et al. 2024, appendix B. Over long sequences of small factors its sums lose digits in
    float32, unlike `diagonal_scan`. `diagonal_scan` is faster on a CPU; the scan is faster on an H100, up to about 500
    steps.
    """
    log_decay = log_a.cumsum(1)
    log_terms = log_b - log_decay
    if log_h0 is not None:
        log_terms = torch.cat([log_h0[:, None], log_terms], 1)
    return (log_decay + log_terms.logcumsumexp(1)[:, -log_a.shape[1] :]).exp()


def lstm(
    x: Tensor, h0: Tensor, c0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (out (B, T, H), h (B, H), c (B, H)); the gates' order in the weights is in, forget, cell, out."""
    if x.shape[1] == 1:  # in generation, the code around the kernel costs more than the step itself
        h, c = lstm_step(linear_or_lookup(x[:, 0], w_ih, b_ih), h0, c0, w_hh, b_hh)
        return h[:, None], h, c
    out, h, c = _run_kernel(torch.lstm, x, (h0, c0), [w_ih, w_hh, b_ih, b_hh])
    return out, h[0], c[0]


def lstm_step(u: Tensor, h: Tensor, c: Tensor, w_hh: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
    """Return (h, c) (B, H) after one step, for u = W_ih x + b_ih (B, 4H)."""
    i, f, g, o = (u + F.linear(h, w_hh, b_hh)).chunk(4, 1)  # (B, H) each
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def lstm_lookup(index: Tensor, table: Tensor, h0: Tensor, c0: Tensor, w_hh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `lstm` does if W_ih x_t + b_ih + b_hh is row `index` (B, T) of `table` (V, 4H).

    The product with the input, half of the work when F = H, becomes a look-up, which torch's kernel cannot do.
    """
    out, h, c = _apply_in_float32(_LSTM, index.t(), table, h0, c0, w_hh)
    return out.transpose(0, 1), h, c


def gru(x: Tensor, h0: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> tuple[Tensor, Tensor]:
    """Return (out (B, T, H), h (B, H)); the gates' order in the weights is reset, update, new."""
    out, h = _run_kernel(torch.gru, x, (h0,), [w_ih, w_hh, b_ih, b_hh])
    return out, h[0]


def _apply_in_float32(function: type[Function], *arguments: Any) -> Any:
    """Apply `function` in float32 or wider, outside autocast; return its results in the arguments' common type."""
    dtypes = [a.dtype for a in arguments if isinstance(a, Tensor) and a.is_floating_point()]
    dtype = functools.reduce(torch.promote_types, dtypes)
    compute_dtype = torch.promote_types(dtype, torch.float32)
    if all(d == compute_dtype for d in dtypes):
        return function.apply(*arguments)
    cast_arguments = [a.to(compute_dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    results = function.apply(*cast_arguments)
    return results.to(dtype) if isinstance(results, Tensor) else tuple(result.to(dtype) for result in results)


def _run_kernel(kernel: Any, x: Tensor, state: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
    """Run one of torch's own recurrent kernels: one layer, one direction, batch first."""
    if not x.is_floating_point():
        x = F.one_hot(x, weights[0].shape[1]).to(weights[0].dtype)
    use_cudnn = x.is_cuda
    if use_cudnn:  # cuDNN reads its weights from one buffer, and warns when it must copy them there
        flat = torch.cat([weight.flatten() for weight in weights])
        pieces = flat.split([weight.numel() for weight in weights])
        weights = [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]
    else:  # torch's CPU kernels do not follow autocast
        x, state = x.to(weights[0].dtype), tuple(h.to(weights[0].dtype) for h in state)
    state = tuple(h[None] for h in state)
    with torch.autocast(x.device.type, enabled=use_cudnn and torch.is_autocast_enabled("cuda")):
        return kernel(
            x, state if kernel is torch.lstm else state[0], weights, True, 1, 0.0, torch.is_grad_enabled(), False, True
        )


# The functions below write matrix products in place or to `out`, because autocast leaves these forms alone.


class _Elman(Function):
    """Compute h_t = f(u_t + W h_{t-1}), all (T, B, H)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, weight: Tensor, h0: Tensor, nonlinearity: str) -> Tensor:
        states = u.new_empty(len(u) + 1, *u.shape[1:])  # h_0 first
        states[0] = h0
        if nonlinearity == "none":
            linear_scan(u, weight.t(), h0, states[1:])
        else:
            activate = torch.Tensor.tanh_ if nonlinearity == "tanh" else torch.Tensor.relu_
            h = h0
            for row, result in zip(u.unbind(0), states[1:].unbind(0), strict=True):
                h = activate(torch.addmm(row, h, weight.t(), out=result))
        ctx.nonlinearity = nonlinearity
        ctx.save_for_backward(states, weight)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_h: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        d_u = torch.empty_like(states[1:])
        d_next = torch.zeros_like(states[0])
        if ctx.nonlinearity == "none":
            linear_scan(d_h, weight, d_next, d_u, reverse=True)
        else:
            slope = _tanh_backward if ctx.nonlinearity == "tanh" else _relu_backward
            for row, h, result in reversed(list(zip(d_h, states[1:], d_u, strict=True))):
                d_next = slope(torch.addmm(row, d_next, weight, out=result), h, grad_input=result)
        d_weight = d_h0 = None
        if ctx.needs_input_grad[1]:
            d_weight = torch.mm(d_u.flatten(0, 1).t(), states[:-1].flatten(0, 1), out=torch.empty_like(weight))
        if ctx.needs_input_grad[2]:
            d_h0 = torch.mm(d_u[0], weight, out=torch.empty_like(states[0]))
        return d_u, d_weight, d_h0, None


def linear_scan(u: Tensor, matrix: Tensor, h0: Tensor, out: Tensor, reverse: bool = False) -> None:
    """Write h_t = u_t + h_{t-1} M to `out`, all (T, B, H); with `reverse` from the last step to the first."""
    if u.is_cuda and len(u) > 16:
        linear_in_chunks(u, matrix, h0, out, reverse)
    else:
        linear_in_steps(u, matrix, h0, out, reverse)


def linear_in_steps(u: Tensor, matrix: Tensor, h0: Tensor, out: Tensor, reverse: bool = False) -> None:
    """Compute `linear_scan` in T products, each (B, H) by M."""
    h = h0
    steps = list(zip(u.unbind(0), out.unbind(0), strict=True))
    for row, result in reversed(steps) if reverse else steps:
        h = torch.addmm(row, h, matrix, out=result)


def linear_in_chunks(u: Tensor, matrix: Tensor, h0: Tensor, out: Tensor, reverse: bool = False) -> None:
    """Compute `linear_scan` in about 3 sqrt(T) products, for devices where a small product costs only its launch.

    First, all N chunks take their C steps at once, each from a zero state. Second, the states between the chunks are
    computed one after the other by M^C. Third, all chunks repeat their C steps, each from its true initial state.
    """
    num_steps, size, width = u.shape
    length = math.isqrt(num_steps)
    num_chunks = -(-num_steps // length)
    u = F.pad(u.flip(0) if reverse else u, (0, 0, 0, 0, 0, num_chunks * length - num_steps))
    u = u.view(num_chunks, length, size, width).transpose(0, 1).flatten(1, 2)  # (C, N * B, H)
    h = torch.empty_like(u)
    linear_in_steps(u, matrix, torch.zeros_like(u[0]), h)
    ends = h[-1].view(num_chunks, size, width)
    starts = torch.empty_like(ends)
    starts[0] = h0
    linear_in_steps(ends[:-1], _matrix_power(matrix, length), h0, starts[1:])
    linear_in_steps(u, matrix, starts.flatten(0, 1), h)
    h = h.view(length, num_chunks, size, width).transpose(0, 1).flatten(0, 1)[:num_steps]
    out.copy_(h.flip(0) if reverse else h)


def _matrix_power(matrix: Tensor, exponent: int) -> Tensor:
    """Return M^n by repeated squaring."""
    if exponent == 1:
        return matrix
    half = _matrix_power(matrix, exponent // 2)
    square = torch.mm(half, half, out=torch.empty_like(half))
    return torch.mm(square, matrix, out=torch.empty_like(half)) if exponent % 2 else square


class _Diagonal(Function):
    """Compute h_t = a_t h_{t-1} + b_t, all (B, T, H)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
        h = torch.empty_like(b)
        _scan_diagonal(a, b, h0, h)
        ctx.save_for_backward(a, h0, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_h: Tensor) -> tuple[Tensor | None, ...]:
        a, h0, h = ctx.saved_tensors
        d_b = torch.empty_like(h)
        d_b[:, -1] = d_h[:, -1]
        _scan_diagonal(a[:, 1:], d_h[:, :-1], d_h[:, -1], d_b[:, :-1], reverse=True)
        d_a = d_h0 = None
        if ctx.needs_input_grad[0]:
            d_a = torch.cat([h0[:, None], h[:, :-1]], 1).mul_(d_b)
        if ctx.needs_input_grad[2]:
            d_h0 = a[:, 0] * d_b[:, 0]
        return d_a, d_b, d_h0


def _scan_diagonal(a: Tensor, b: Tensor, h0: Tensor, out: Tensor, reverse: bool = False) -> None:
    """Write h_t = a_t h_{t-1} + b_t to `out`, all (B, T, H); with `reverse` from the last step to the first."""
    h = h0
    steps = list(zip(a.unbind(1), b.unbind(1), out.unbind(1), strict=True))
    for factor, row, result in reversed(steps) if reverse else steps:
        h = torch.addcmul(row, factor, h, out=result)


class _LSTM(Function):
    """Compute out (T, B, H), h and c (B, H) of an LSTM whose gates' inputs are rows `index` (T, B) of `table` (V, 4H).

    Gates and their gradients are computed in blocks of steps that fit into the cache.
    """

    @staticmethod
    def forward(ctx: Any, index: Tensor, table: Tensor, h0: Tensor, c0: Tensor, w_hh: Tensor) -> tuple[Tensor, ...]:
        size, width = h0.shape
        hs = h0.new_empty(len(index) + 1, size, width)  # h_0 first
        cs = torch.empty_like(hs)
        hs[0], cs[0] = h0, c0
        states = zip(hs[:-1], hs[1:], cs[:-1], cs[1:], strict=True)
        w_hh_t = w_hh.t().contiguous()
        blocks = []
        for part in index.split(max(1, BLOCK_ROWS // size)):
            gates = table.index_select(0, part.flatten()).view(*part.shape, 4, width)
            for row, (h, h_next, c, c_next) in zip(gates, states, strict=False):
                row.flatten(1).addmm_(h, w_hh_t)
                i, f, g, o = row.unbind(1)
                row[:, :2].sigmoid_()
                g.tanh_()
                o.sigmoid_()
                torch.mul(f, c, out=c_next).addcmul_(i, g)
                torch.tanh(c_next, out=h_next).mul_(o)
            blocks.append(gates)
        ctx.num_rows = len(table)
        ctx.save_for_backward(index, hs, cs, w_hh, *blocks)
        ctx.set_materialize_grads(False)
        return hs[1:], hs[-1].clone(), cs[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_h: Tensor | None, d_c: Tensor | None) -> tuple[Tensor | None, ...]:
        index, hs, cs, w_hh, *blocks = ctx.saved_tensors
        d_h = torch.zeros_like(hs[0]) if d_h is None else d_h.clone()
        d_c = torch.zeros_like(cs[0]) if d_c is None else d_c.clone()
        d_table = w_hh.new_zeros(ctx.num_rows, len(w_hh))
        d_w_hh = torch.zeros_like(w_hh)
        buffer = torch.empty_like(blocks[0])
        end = len(index)
        for gates in reversed(blocks):
            start, d_gates = end - len(gates), buffer[: len(gates)]
            dh_dc = _lstm_dh_dc(gates, cs[start:end], cs[start + 1 : end + 1], out=d_gates)
            for t in reversed(range(len(gates))):
                if d_out is not None:
                    d_h += d_out[start + t]
                d_c.addcmul_(d_h, dh_dc[t])
                d_gates[t, :, :3] *= d_c[:, None]
                d_gates[t, :, 3] *= d_h
                d_c *= gates[t, :, 1]
                torch.mm(d_gates[t].flatten(1), w_hh, out=d_h)
            flat = d_gates.view(-1, len(w_hh))
            d_table.index_add_(0, index[start:end].flatten(), flat)
            d_w_hh.addmm_(flat.t(), hs[start:end].flatten(0, 1))
            end = start
        return None, d_table, d_h, d_c, d_w_hh


def _lstm_dh_dc(gates: Tensor, c: Tensor, c_next: Tensor, out: Tensor) -> Tensor:
    """Return dh/dc, and write to `out` the factors that give the gradients of the gates before their activations.

    The factors of i, f and g are multiplied by d_c, that of o by d_h. `gates` and `out` are (T, B, 4, H); the
    cells before and after the steps are (T, B, H).
    """
    i, f, g, o = gates.unbind(2)
    d_i, d_f, d_g, d_o = out.unbind(2)
    tanh_c = c_next.tanh()
    _sigmoid_backward(g, i, grad_input=d_i)
    _sigmoid_backward(c, f, grad_input=d_f)
    _tanh_backward(i, g, grad_input=d_g)
    _sigmoid_backward(tanh_c, o, grad_input=d_o)
    return _tanh_backward(o, tanh_c, grad_input=tanh_c)
