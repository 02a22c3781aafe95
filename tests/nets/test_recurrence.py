"""Recurrences equal their loops, step by step, in value and in gradient."""

from collections.abc import Callable
from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.nets import lstm as lstm_file
from leyden.nets import recurrence
from leyden.nets.lstm import GRU, LSTM
from leyden.nets.rnn import RNN, ElmanLayer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
sizes = st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 5))  # B, T, H


class LSTMCell(nn.Module):
    """One step of a plain LSTM, with its four gates in one linear map of the input and one of the hidden state."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.i2h, self.h2h = nn.Linear(input_size, 4 * hidden_size), nn.Linear(hidden_size, 4 * hidden_size)

    def forward(self, input: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return recurrence.lstm_step(self.i2h(input), *state, self.h2h.weight, self.h2h.bias)


def values(*shape: int) -> Tensor:
    return (0.4 * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def assert_equal(function: Callable, reference: Callable, *arguments: Tensor, tolerance: float = 1e-12) -> None:
    """Results and gradients are the same, to `tolerance` of the largest value; what comes back is random."""
    ours, theirs = (tuple(f(*arguments)) for f in (function, reference))
    backs = [torch.randn_like(result) for result in theirs]
    wanted = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    pairs = [
        *zip(ours, theirs, strict=True),
        *zip(torch.autograd.grad(ours, wanted, backs), torch.autograd.grad(theirs, wanted, backs), strict=True),
    ]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, b.detach().abs().max().item()))


def linear(u: Tensor, weight: Tensor, h0: Tensor) -> Tensor:
    return recurrence._in_float32(recurrence._Elman, u.transpose(0, 1), weight, h0, "none").transpose(0, 1)


def linear_loop(u: Tensor, weight: Tensor, h: Tensor) -> list[Tensor]:
    out = []
    for row in u.unbind(1):
        h = row + h @ weight.t()
        out.append(h)
    return [torch.stack(out, 1)]


def elman_loop(function: Callable, x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor) -> list[Tensor]:
    out = []
    for row in x.unbind(1):
        h = function(row @ w_ih.t() + h @ w_hh.t() + bias)
        out.append(h)
    return [torch.stack(out, 1)]


def diagonal_loop(a: Tensor, b: Tensor, h: Tensor) -> list[Tensor]:
    out = []
    for factor, row in zip(a.unbind(1), b.unbind(1), strict=True):
        h = factor * h + row
        out.append(h)
    return [torch.stack(out, 1)]


def cell_loop(cell: LSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out = []
    for row in x.unbind(1):
        h, c = cell(row, (h, c))
        out.append(h)
    return torch.stack(out, 1), h, c


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_linear_equals_its_loop(size):
    b, t, h = size
    assert_equal(lambda *a: [linear(*a)], linear_loop, values(b, t, h), values(h, h), values(b, h))


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_diagonal_equals_its_loop(size):
    b, t, h = size
    assert_equal(lambda *a: [recurrence.diagonal(*a)], diagonal_loop, values(b, t, h), values(b, t, h), values(b, h))


@settings(max_examples=40, deadline=None)
@given(sizes.filter(lambda size: size[1] > 1))
def test_the_form_for_a_gpu_equals_the_loop(size):
    b, t, h = size
    with mock.patch.object(recurrence, "linear_scan", recurrence.linear_in_chunks):
        assert_equal(lambda *a: [linear(*a)], linear_loop, values(b, t, h), values(h, h), values(b, h))


@settings(max_examples=20, deadline=None)
@given(size=sizes, started=st.booleans())
def test_log_scan_equals_the_loop(size, started):
    b, t, h = size
    log_a, log_b, log_h0 = values(b, t, h), values(b, t, h), values(b, h)
    log_h0 = log_h0 if started else torch.full_like(log_h0, -torch.inf)

    def loop(log_a: Tensor, log_b: Tensor, log_h0: Tensor) -> list[Tensor]:
        return diagonal_loop(log_a.exp(), log_b.exp(), log_h0.exp())

    scan = lambda a, b, h: [recurrence.log_scan(a, b, h if started else None)]  # noqa: E731
    assert_equal(scan, loop, log_a, log_b, log_h0, tolerance=1e-11)


@settings(max_examples=30, deadline=None)
@given(size=sizes, nonlinearity=st.sampled_from(["none", "tanh", "relu"]), tokens=st.booleans())
def test_elman_equals_its_loop(size, nonlinearity, tokens):
    b, t, h = size
    function = {"none": lambda x: x, "tanh": torch.tanh, "relu": torch.relu}[nonlinearity]
    token = torch.randint(3, (b, t))
    x = F.one_hot(token, 3).double()

    def ours(*rest: Tensor) -> list[Tensor]:
        return [recurrence.elman(token if tokens else x, *rest, nonlinearity=nonlinearity)]

    weights = values(b, h), values(h, 3), values(h, h), values(h)
    assert_equal(ours, partial(elman_loop, function, x), *weights)


@settings(max_examples=30, deadline=None)
@given(size=sizes, block=st.sampled_from([1, 6, 1024]), embedded=st.booleans())
def test_lstm_of_looked_up_rows_equals_the_cell(size, block, embedded):
    b, t, h = size
    layer, token = LSTM(3, h).double(), torch.randint(3, (b, t))

    def ours(h0: Tensor, c0: Tensor, embedding: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        out, state = layer(token, (h0, c0), embedding if embedded else None)
        return out, *state

    def theirs(h0: Tensor, c0: Tensor, embedding: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return cell_loop(partial(LSTMCell.forward, layer), F.embedding(token, embedding), h0, c0)

    embedding = values(3, 3) if embedded else torch.eye(3, dtype=torch.float64)
    with mock.patch.object(lstm_file, "MIN_LOOKUP_SIZE", 0), mock.patch.object(recurrence, "BLOCK_ROWS", block):
        assert_equal(ours, theirs, values(b, h), values(b, h), embedding, *layer.parameters())


@pytest.mark.parametrize("device", DEVICES)
def test_lstm_equals_the_cell_and_loads_its_state_dict(device):
    cell, layer = LSTMCell(4, 5).to(device, torch.float64), LSTM(4, 5).to(device, torch.float64)
    layer.load_state_dict(cell.state_dict())
    cell.load_state_dict(layer.state_dict())
    x, h0, c0 = (values(*shape).detach().to(device).requires_grad_() for shape in [(3, 7, 4), (3, 5), (3, 5)])

    def ours(*given: Tensor) -> tuple[Tensor, ...]:
        out, state = layer(given[0], given[1:])
        return out, *state

    assert_equal(ours, lambda *given: cell_loop(cell, *given), x, h0, c0)
    for net in (cell, layer):
        net.zero_grad()
    ours(x, h0, c0)[0].sum().backward()
    cell_loop(cell, x, h0, c0)[0].sum().backward()
    for a, b in zip(layer.parameters(), cell.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("error")  # cuDNN's, of weights that are not in one piece
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("ours", "theirs"), [(LSTM, nn.LSTM), (GRU, nn.GRU), (ElmanLayer, nn.RNN), (partial(ElmanLayer, nonlinearity="relu"), partial(nn.RNN, nonlinearity="relu"))]
)  # fmt: skip
def test_layers_equal_torchs_with_its_weights(ours, theirs, device):
    ours, theirs = ours(4, 5).to(device, torch.float64), theirs(4, 5, batch_first=True).to(device, torch.float64)
    parts = ["i2h.weight", "h2h.weight", "i2h.bias", "h2h.bias"]
    ours.load_state_dict(dict(zip(parts, theirs.state_dict().values(), strict=True)))
    x = values(3, 7, 4).detach().to(device).requires_grad_()
    assert_equal(lambda x: [ours(x)[0]], lambda x: [theirs(x)[0]], x)
    ours(x)[0].sum().backward()
    theirs(x)[0].sum().backward()
    for name, (_, b) in zip(parts, theirs.named_parameters(), strict=True):
        torch.testing.assert_close(ours.get_parameter(name).grad, b.grad, rtol=1e-12, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(size=sizes, nonlinearity=st.sampled_from(["none", "tanh", "relu"]), tokens=st.booleans())
def test_the_linear_rnn_over_a_sequence_is_its_steps(size, nonlinearity, tokens):
    b, t, h = size
    net = RNN(3, h, 4, nonlinearity).double()
    token = torch.randint(3, (b, t))
    x = F.one_hot(token, 3).double() if tokens else values(b, t, 3)

    def ours(h0: Tensor, x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        log_proba, state = net(token if tokens else x, (h0,))
        return log_proba, *state

    def theirs(hidden: Tensor, x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        out = []
        for row in x.unbind(1):
            log_proba, hidden = net.step(row, hidden)
            out.append(log_proba)
        return torch.stack(out, 1), hidden

    assert_equal(ours, theirs, values(b, h), x, *net.parameters())
    torch.testing.assert_close(net(x)[0], theirs(x.new_zeros(b, h), x)[0], rtol=1e-12, atol=1e-12)


def test_a_step_of_the_linear_rnn_is_two_linear_maps():
    net = RNN(3, 5, 4)
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == {
        "i2h.weight": (5, 8), "i2h.bias": (5,), "i2o.weight": (4, 8), "i2o.bias": (4,)
    }  # fmt: skip
    x, hidden = torch.randn(2, 3), torch.randn(2, 5)
    log_proba, after = net.step(x, hidden)
    combined = torch.cat((x, hidden), 1)
    assert torch.equal(after, net.i2h(combined))
    assert torch.equal(log_proba, nn.LogSoftmax(dim=1)(net.i2o(combined)))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: LSTM(4, 5),
    "GRU": lambda: GRU(4, 5),
    "Elman": lambda: ElmanLayer(4, 5),
    "RNN": lambda: RNN(4, 5, 6),
    "RNN tanh": lambda: RNN(4, 5, 6, "tanh"),
}


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_carried_state_is_one_long_sequence_and_nothing_depends_on_gradients(name, tokens, monkeypatch):
    monkeypatch.setattr(lstm_file, "MIN_LOOKUP_SIZE", 0)
    layer = LAYERS[name]().double()
    x = torch.randint(4, (3, 9)) if tokens else torch.randn(3, 9, 4, dtype=torch.float64)
    if tokens:
        torch.testing.assert_close(layer(x)[0], layer(F.one_hot(x, 4).double())[0], rtol=1e-12, atol=1e-12)
    whole, end = layer(x)
    state, parts = None, []
    for part in x.split([1, 3, 4, 1], 1):  # a single step is what generation does
        out, state = layer(part, state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)
    for a, b in zip(state, end, strict=True):
        assert a.shape == (3, 5)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(layer.eval()(x)[0], whole)


def test_gradients_by_finite_differences():
    token = torch.tensor([[0, 2, 2], [1, 0, 2]])
    assert torch.autograd.gradcheck(linear, (values(2, 3, 2), values(2, 2), values(2, 2)))
    assert torch.autograd.gradcheck(recurrence.diagonal, (values(2, 3, 2), values(2, 3, 2), values(2, 2)))
    assert torch.autograd.gradcheck(
        partial(recurrence.lstm_of_rows, token), (values(3, 8), values(2, 2), values(2, 2), values(8, 2))
    )
    for nonlinearity in ("tanh", "relu"):
        function = partial(recurrence.elman, nonlinearity=nonlinearity)
        assert torch.autograd.gradcheck(
            function, (values(2, 3, 3), values(2, 2), values(2, 3), values(2, 2), values(2))
        )


def test_a_gradient_of_a_gradient_is_refused():
    u = values(2, 3, 2)
    (grad,) = torch.autograd.grad(linear(u, values(2, 2), values(2, 2)).square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_autocast_trains_with_little_difference(name, tokens, device, monkeypatch):
    monkeypatch.setattr(lstm_file, "MIN_LOOKUP_SIZE", 0)
    layer = LAYERS[name]().to(device)
    x = torch.randint(4, (3, 20), device=device) if tokens else torch.randn(3, 20, 4, device=device)
    exact = layer(x)[0]
    exact.square().sum().backward()
    gradients = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    with torch.autocast(device, torch.bfloat16):
        out, state = layer(x if tokens else x.bfloat16())
        out.float().square().sum().backward()
        layer(x, state)
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    for a, b in zip(gradients, layer.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a, rtol=0.1, atol=0.1 * float(a.abs().max()))


def test_weight_drop_drops_hidden_weights_in_training_only():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4)
    for layer in (LSTM(4, 50, weight_drop=0.5), GRU(4, 50, weight_drop=0.5)):
        out = layer(x)[0]
        assert torch.equal(out[:, 0], layer.eval()(x)[0][:, 0])  # the first step starts from zero: no weight matters
        assert not torch.equal(out[:, 1], layer(x)[0][:, 1])
        assert torch.equal(layer(x)[0], layer(x)[0])
        layer.train()(x)[0].sum().backward()
        share = (layer.h2h.weight.grad == 0).float().mean().item()
        assert 0.4 < share < 0.6  # one mask for all steps: what is dropped has no gradient
