"""Tokens per second, forward and backward: recurrent nets as plain loops, leyden's nets, and torch's layers.

All variants of a table compute the same task; a row says so if its arithmetic differs. Each runs once in every
round, in alternating order. Figures are medians over rounds of the process's CPU time, or of the time between
CUDA events; `ratio` is the speed relative to the first row, and `least` that of the fastest rounds.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.nets import recurrence
from leyden.nets.lstm import LSTM
from leyden.nets.min_rnn import MinGRU, g, log_g
from leyden.nets.rnn import RNN

Variants = dict[str, Callable[[], None]]
VOCAB = 65  # characters in tiny shakespeare


def lstm_variants(batch: int, steps: int, width: int, device: str) -> Variants:
    """An embedding and an LSTM, as in a character language model, with a random gradient for every output."""
    token = torch.randint(VOCAB, (batch, steps), device=device)
    gradient = torch.randn(batch, steps, width, device=device)
    embedding = nn.Embedding(VOCAB, width, device=device)
    layer = LSTM(width, width).to(device)
    bare = nn.LSTM(width, width, batch_first=True, device=device)

    def loop(unbind: bool) -> Tensor:
        x = embedding(token)
        rows = x.unbind(1) if unbind else None
        h = c = torch.zeros(batch, width, device=device)
        out = []
        for t in range(steps):
            u = layer.i2h(rows[t] if rows else x[:, t])
            h, c = recurrence.lstm_step(u, h, c, layer.h2h.weight, layer.h2h.bias)
            out.append(h)
        return torch.stack(out, 1)

    runs: dict[str, Callable[[], Tensor]] = {
        "plain cell in a loop, x[:, t]": lambda: loop(False),
        "plain cell in a loop, x.unbind(1)": lambda: loop(True),
        "nn.LSTM": lambda: bare(embedding(token))[0],
        "ours, of features": lambda: layer(embedding(token))[0],
        "ours, of tokens": lambda: layer(token, None, embedding.weight)[0],
    }
    train = functools.partial(_train, [embedding, layer, bare], gradient=gradient)
    return {name: functools.partial(train, run) for name, run in runs.items()}


def rnn_variants(batch: int, steps: int, width: int, device: str) -> Variants:
    """A linear RNN on one-hot characters, with a loss at every step."""
    token = torch.randint(VOCAB, (batch, steps), device=device)
    one_hot = F.one_hot(token, VOCAB).float()
    target = torch.randint(VOCAB, (batch, steps), device=device)
    net = RNN(VOCAB, width, VOCAB).to(device)
    bare, decoder = nn.RNN(VOCAB, width, batch_first=True, device=device), nn.Linear(width, VOCAB, device=device)

    def loop() -> Tensor:
        hidden = torch.zeros(batch, width, device=device)
        loss = torch.zeros((), device=device)
        for t in range(steps):
            log_proba, hidden = net.step(one_hot[:, t], hidden)
            loss = loss + F.nll_loss(log_proba, target[:, t])
        return loss / steps

    def ours() -> Tensor:
        return F.nll_loss(net(token)[0].flatten(0, 1), target.flatten())

    def torch_layer() -> Tensor:
        return F.cross_entropy(decoder(bare(one_hot)[0]).flatten(0, 1), target.flatten())

    train = functools.partial(_train, [net, bare, decoder])
    return {
        "step in a loop": lambda: train(loop),
        "nn.RNN (with tanh) and decoder": lambda: train(torch_layer),
        "ours, in steps": _with_patch("linear_scan", recurrence.linear_in_steps, lambda: train(ours)),
        "ours, in chunks": _with_patch("linear_scan", recurrence.linear_in_chunks, lambda: train(ours)),
        "ours, as chosen": lambda: train(ours),
    }


def min_gru_variants(batch: int, steps: int, width: int, device: str) -> Variants:
    """One minGRU layer, with a random gradient for every output."""
    x = torch.randn(batch, steps, width, device=device)
    gradient = torch.randn(batch, steps, width, device=device)
    layer = MinGRU(width, width).to(device)

    def loop() -> Tensor:
        h = torch.zeros(batch, width, device=device)
        out = []
        for t in range(steps):
            logit, v = layer.linear(x[:, t]).chunk(2, 1)
            h = (1 - logit.sigmoid()) * h + logit.sigmoid() * g(v)
            out.append(h)
        return torch.stack(out, 1)

    def log_scan() -> Tensor:
        logit, v = layer.update(layer.linear(x).float())
        return recurrence.log_scan(F.logsigmoid(-logit), F.logsigmoid(logit) + log_g(v))

    def diagonal() -> Tensor:
        logit, v = layer.update(layer.linear(x).float())
        return recurrence.diagonal_scan((-logit).sigmoid(), logit.sigmoid() * g(v), torch.zeros_like(v[:, 0]))

    train = functools.partial(_train, [layer], gradient=gradient)
    return {
        "loop": lambda: train(loop),
        "scan of logarithms": lambda: train(log_scan),
        "ours, in steps": lambda: train(diagonal),
        "the layer": lambda: train(lambda: layer(x)[0]),
    }


def _train(nets: list[nn.Module], forward: Callable[[], Tensor], gradient: Tensor | None = None) -> None:
    for net in nets:
        net.zero_grad()
    result = forward()
    result.backward(gradient if gradient is None else gradient.to(result.dtype))


def _with_patch(name: str, implementation: Callable[..., None], run: Callable[[], None]) -> Callable[[], None]:
    """Return `run` with one implementation of a recurrence patched in."""

    def patched() -> None:
        with mock.patch.object(recurrence, name, implementation):
            run()

    return patched


def measure_seconds(run: Callable[[], None], device: str) -> float:
    """Return the CPU time of a run, or the GPU time between its first and last operation."""
    if device == "cpu":
        began = time.process_time()
        run()
        return time.process_time() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def measure(title: str, variants: Variants, tokens: int, device: str, rounds: int) -> None:
    """Run the rounds and print the table."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        order = list(variants.items())
        for name, run in order if number % 2 else reversed(order):
            duration = measure_seconds(run, device)
            if number:  # the first round warms up
                times[name].append(duration)
    table = Table(title=title)
    for column in ("", "tokens/s", "ms", "ratio", "least"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    base = next(iter(times.values()))
    for name, durations in times.items():
        duration = statistics.median(durations)
        ratio = statistics.median(b / t for b, t in zip(base, durations, strict=True))
        fastest_ratio = min(base) / min(durations)
        table.add_row(
            name, f"{tokens / duration:,.0f}", f"{duration * 1e3:.1f}", f"{ratio:.2f}", f"{fastest_ratio:.2f}"
        )
    Console().print(table)


# batch, steps and width of each net, by device
SHAPES = {
    "cpu": {"lstm": [(64, 128, 256)], "rnn": [(64, 64, 128)], "mingru": [(64, 128, 128)]},
    "cuda": {
        "lstm": [(16, 1024, 768)],
        "rnn": [(64, 128, 128), (64, 512, 128), (64, 1024, 128)],
        "mingru": [(64, 128, 128), (64, 512, 128), (64, 1024, 128)],
    },
}
NETS = {"lstm": lstm_variants, "rnn": rnn_variants, "mingru": min_gru_variants}


def main(argv: list[str]) -> None:
    """Measure every net at every shape and print the tables."""
    parser = argparse.ArgumentParser(prog="scripts/bench recurrent", description=__doc__)
    parser.add_argument("--device", choices=SHAPES, default="cpu")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--rounds", type=int, default=7, help="number of interleaved rounds; the median is reported")
    parser.add_argument("--shape", nargs=3, type=int, metavar=("B", "T", "H"), help="instead of the default shapes")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in options.nets:
        for batch, steps, width in [tuple(options.shape)] if options.shape else SHAPES[options.device][name]:
            for dtype in [torch.float32] if options.device == "cpu" else [torch.float32, torch.bfloat16]:
                title = f"{name}: batch {batch}, {steps} steps, width {width}, {str(dtype).removeprefix('torch.')}"
                with torch.autocast(options.device, dtype, enabled=dtype != torch.float32):
                    variants = NETS[name](batch, steps, width, options.device)
                    measure(title, variants, batch * steps, options.device, options.rounds)
