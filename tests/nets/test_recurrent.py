"""Recurrent stacks and the language models made of them: references, padding, carried states, learning by heart."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from leyden.errors import UserError
from leyden.nets import min_rnn
from leyden.nets.language import MinRNNLM, RecurrentLM
from leyden.nets.min_rnn import MinBlock, MinGRU
from leyden.nets.recurrent import LockedDropout, Recurrent, last_output
from leyden.nets.rnn import RNN
from leyden.nets.transformer import TransformerLM

CELLS = ["lstm", "gru", "rnn", "mingru", "minlstm"]
REFERENCE = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}

LANGUAGE_MODELS = {
    "rnn": lambda: RNN(11, 16, 11),
    **{cell: lambda cell=cell: RecurrentLM(11, 6, 16, 2, cell) for cell in CELLS},
    "awd": lambda: RecurrentLM(11, 6, 16, 3, "lstm", tied=True, layer_norm=True, residual=True),
    "minblocks": lambda: MinRNNLM(11, 16, 2, mlp_size=24, cell="minlstm", expansion=2),
    "transformer": lambda: TransformerLM(11, 16, 2, num_heads=2, context=7, mlp_size=24, mlp="swiglu"),
}


@pytest.fixture(params=LANGUAGE_MODELS)
def lm(request):
    torch.manual_seed(0)
    return LANGUAGE_MODELS[request.param]().double().eval()


def close(a, b, tolerance=1e-12):
    return torch.allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", REFERENCE)
def test_stack_equals_torchs_with_the_same_weights(cell, bidirectional):
    torch.manual_seed(0)
    net = Recurrent(3, 5, 2, cell, bidirectional).double()
    reference = REFERENCE[cell](3, 5, 2, batch_first=True, bidirectional=bidirectional).double()
    for suffix, layers in ("", net.layers), ("_reverse", net.backward_layers):
        for index, layer in enumerate(layers):
            for name, linear in ("ih", layer.i2h), ("hh", layer.h2h):
                linear.weight.data = getattr(reference, f"weight_{name}_l{index}{suffix}").data.clone()
                linear.bias.data = getattr(reference, f"bias_{name}_l{index}{suffix}").data.clone()

    x = torch.randn(4, 9, 3, dtype=torch.float64)
    length = torch.tensor([9, 1, 4, 7])
    packed = nn.utils.rnn.pack_padded_sequence(x, length, batch_first=True, enforce_sorted=False)
    expected, hidden = reference(packed)
    expected, _ = nn.utils.rnn.pad_packed_sequence(expected, batch_first=True)
    out, state = net(x, length=length)
    assert state is None
    assert close(out, expected)
    assert close(net(x)[0], reference(x)[0])
    h = hidden[0] if cell == "lstm" else hidden
    last = torch.cat([h[-2], h[-1]], 1) if bidirectional else h[-1]
    assert close(last_output(out, length, bidirectional), last)

    (ours,) = torch.autograd.grad(out.square().sum(), net.layers[0].h2h.weight)
    (theirs,) = torch.autograd.grad(expected.square().sum(), reference.weight_hh_l0)
    assert close(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(
    cell=st.sampled_from(CELLS),
    bidirectional=st.booleans(),
    layer_norm=st.booleans(),
    residual=st.booleans(),
    length=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    padding=st.sampled_from([1.0, -1e30, float("inf"), float("nan")]),
    seed=st.integers(0, 99),
)
def test_what_stands_past_an_end_changes_nothing(cell, bidirectional, layer_norm, residual, length, padding, seed):
    torch.manual_seed(seed)
    net = Recurrent(3, 4, 2, cell, bidirectional, layer_norm=layer_norm, residual=residual).double()
    rows = [torch.randn(steps, 3, dtype=torch.float64) for steps in length]
    x = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    out, _ = net(x, length=torch.tensor(length))
    out.sum().backward()
    gradient = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    last = last_output(out, torch.tensor(length), bidirectional)
    for index, row in enumerate(rows):
        alone, _ = net(row[None])
        alone.sum().backward()
        assert close(out[index, : len(row)], alone[0])
        assert close(last[index], last_output(alone, None, bidirectional)[0])
        assert not out[index, len(row) :].any()
    assert all(close(g, p.grad) for g, p in zip(gradient, net.parameters(), strict=True))


@settings(max_examples=40, deadline=None)
@given(
    layer=st.sampled_from(["MinGRU", "MinLSTM"]),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    num_steps=st.integers(1, 40),
    carried=st.booleans(),
    seed=st.integers(0, 99),
)
def test_minimal_layers_equal_their_equations_step_by_step(layer, scale, num_steps, carried, seed):
    torch.manual_seed(seed)
    net = getattr(min_rnn, layer)(3, 5).double()
    x = scale * torch.randn(2, num_steps, 3, dtype=torch.float64)
    h0 = torch.rand(2, 5, dtype=torch.float64, requires_grad=True) if carried else None

    h, expected = torch.zeros(2, 5, dtype=torch.float64) if h0 is None else h0, []
    for gates in net.linear(x).unbind(1):
        if layer == "MinGRU":
            z, v = gates.chunk(2, 1)
            z = z.sigmoid()
        else:
            f, i, v = gates.chunk(3, 1)
            z = i.sigmoid() / (f.sigmoid() + i.sigmoid())
        h = (1 - z) * h + z * torch.where(v >= 0, v + 0.5, v.sigmoid())
        expected.append(h)
    expected = torch.stack(expected, 1)
    wanted = [net.linear.weight, net.linear.bias, *([] if h0 is None else [h0])]
    reference = torch.autograd.grad(expected.square().sum(), wanted)

    logit, v = net.update(net.linear(x))
    forms = [net(x, None if h0 is None else (h0,))[0], min_rnn.scan_in_steps(logit, v, h0)]
    forms.append(min_rnn.scan_in_parallel(logit, v, h0))
    for out in forms:
        assert close(out, expected, 1e-12 * scale)
        gradients = torch.autograd.grad(out.square().sum(), wanted, retain_graph=True)
        for gradient, theirs in zip(gradients, reference, strict=True):
            assert close(gradient, theirs, 1e-11 * (1 + theirs.abs().max().item()))


def test_a_carried_state_is_one_longer_text(lm):
    token = torch.randint(11, (3, 23))
    logits, state = lm(token)
    assert logits.shape == (3, 23, 11)
    for cuts in ([0, 9, 10, 23], range(24)):  # windows, then one token at a time
        parts, carried = [], None
        for start, end in pairwise(cuts):
            out, carried = lm(token[:, start:end], carried)
            parts.append(out)
        assert close(torch.cat(parts, 1), logits, 1e-10)
        assert all(close(a, b, 1e-10) for a, b in zip(carried, state, strict=True))


def test_rows_go_on_apart_and_no_token_sees_what_follows(lm):
    token = torch.randint(11, (3, 12))
    logits, state = lm(token)
    alone, _ = lm(token[1:2, :6])
    assert close(alone[0], logits[1, :6], 1e-10)
    assert all(len(part) == 3 for part in state)
    assert close(lm(token[:1], tuple(part[2:] for part in state))[0][0], lm(token[[0, 0, 0]], state)[0][2], 1e-10)


def test_every_net_learns_one_batch_by_heart(lm):
    torch.manual_seed(0)
    lm.float().train()
    token = torch.randint(11, (4, 17))
    optimizer = torch.optim.Adam(lm.parameters(), 0.03)
    for _ in range(80):
        loss = F.cross_entropy(lm(token[:, :-1])[0].flatten(0, 1), token[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3  # log(11) = 2.4 is chance


def test_transformer_sees_exactly_its_context():
    torch.manual_seed(0)
    net = TransformerLM(11, 16, 1, num_heads=2, context=4, mlp_size=24).double()
    x = torch.randn(1, 11, 16, dtype=torch.float64, requires_grad=True)
    net.embedding.forward = lambda token: x[:, token[0]]  # tokens that differ, with a gradient each
    logits, _ = net(torch.arange(11)[None])
    for step in range(11):
        seen = torch.autograd.grad(logits[0, step].square().sum(), x, retain_graph=True)[0].abs().sum(2)[0] > 0
        assert seen.nonzero().flatten().tolist() == list(range(max(0, step - 3), step + 1))


def test_transformer_equals_one_written_out():
    torch.manual_seed(0)
    net = TransformerLM(11, 8, 1, num_heads=2, context=6, mlp_size=12, tied=False).double()
    token = torch.randint(11, (1, 5))
    block = net.blocks[0]
    x = net.embedding(token)[0]
    q, k, v = block.qkv(block.norm1(x)).split(8, 1)
    heads = []
    for start in (0, 4):
        turned = []
        for part in (q, k):
            pairs = torch.complex(part[:, start : start + 2], part[:, start + 2 : start + 4])
            angle = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.01], dtype=torch.float64)
            pairs = pairs * torch.polar(torch.ones_like(angle), angle)
            turned.append(torch.cat([pairs.real, pairs.imag], 1))
        scores = turned[0] @ turned[1].T / 2
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(1) @ v[:, start : start + 4])
    x = x + block.project(torch.cat(heads, 1))
    x = x + block.mlp.down(F.gelu(block.mlp.up(block.norm2(x))))
    assert close(net(token)[0][0], net.decoder(net.norm(x)))


def test_min_block_reads_kernel_size_inputs_at_once():
    block = MinBlock(2, MinGRU, kernel_size=3, mlp_size=4).double()
    block.norm1.weight.data.zero_()  # no recurrence,
    block.cell.linear.bias.data.zero_()
    block.norm2.weight.data.zero_()  # no MLP
    x = torch.randn(1, 8, 2, dtype=torch.float64, requires_grad=True)
    out, _ = block(x)
    reached = torch.autograd.grad(out[0, 5].sum(), x)[0].abs().sum(2)[0] > 0
    assert reached.nonzero().flatten().tolist() == [3, 4, 5]


def test_locked_dropout_keeps_its_mask_over_a_sequence():
    torch.manual_seed(0)
    drop = LockedDropout(0.5)
    out = drop(torch.ones(64, 5, 64))
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert (out == out[:, :1]).all()
    assert abs(out.mean().item() - 1) < 0.1
    assert torch.equal(drop.eval()(out), out)


def test_embedding_dropout_drops_whole_words():
    torch.manual_seed(0)
    net = RecurrentLM(40, 8, 8, embedding_dropout=0.5)
    seen = []
    net.recurrent.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    token = torch.arange(40).repeat(2, 1)
    net(token)
    net.eval()(token)
    ratio = seen[0]["embedding"] / seen[1]["embedding"]  # (V, E)
    assert ((ratio == 0) | (ratio - 2).abs().lt(1e-5)).all()
    assert torch.equal(ratio.amin(1), ratio.amax(1))
    assert 5 < (ratio[:, 0] == 0).sum() < 35


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_tokens_looked_up_behind_the_product_are_embeddings(cell):
    torch.manual_seed(0)
    net = RecurrentLM(7, 5, 128, 2, cell=cell).double()
    token = torch.randint(7, (64, 3))
    found = []
    for out in (net(token)[0], net.decoder(net.recurrent(net.embedding(token))[0])):
        net.zero_grad()
        out.square().sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in net.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-10)


def test_tied_weights_are_one_and_dropouts_act_in_training_alone():
    torch.manual_seed(0)
    everything = {
        "embedding_dropout": 0.1,
        "input_dropout": 0.2,
        "dropout": 0.2,
        "output_dropout": 0.2,
        "weight_drop": 0.3,
    }
    net = RecurrentLM(11, 6, 16, 2, tied=True, **everything)
    assert net.decoder.weight is net.embedding.weight
    assert net.project.weight.shape == (6, 16)
    token = torch.randint(11, (2, 5))
    assert not torch.equal(net(token)[0], net(token)[0])
    net.eval()
    assert torch.equal(net(token)[0], net(token)[0])
    net(token)[0].sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("cell", ["rnn", "mingru", "minlstm"])
def test_weight_drop_needs_hidden_to_hidden_weights(cell):
    with pytest.raises(UserError, match=rf"weight_drop=0\.5 drops .* lstm and gru; set it to 0 for cell={cell}"):
        Recurrent(3, 5, cell=cell, weight_drop=0.5)


def test_wrong_sizes_and_states_are_said():
    with pytest.raises(UserError, match=r"hidden_size=20 does not split into model\.net\.num_heads=4 .* multiple of 8"):
        TransformerLM(11, 20, 1, num_heads=4, context=8, mlp_size=24)
    stack = Recurrent(3, 5, cell="rnn", bidirectional=True)
    with pytest.raises(ValueError, match="it takes no state"):
        stack(torch.zeros(1, 2, 3), (torch.zeros(1, 5),))
