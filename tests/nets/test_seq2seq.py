"""Attention equals the paper's loop, decoding at once equals token by token, and padding never changes a result."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.errors import UserError
from leyden.nets.seq2seq import Attention
from support.translation import FORMS, net, pairs


@pytest.mark.parametrize("score", ["dot", "general", "additive"])
def test_attention_equals_the_papers_loop(score):
    torch.manual_seed(0)
    attention = Attention(5, score).double()
    query, memory, length = torch.randn(2, 3, 5).double(), torch.randn(2, 4, 5).double(), [4, 2]
    mask = torch.arange(4) < torch.tensor(length)[:, None]
    context, weight = attention(query, attention.keys(memory), memory, mask)
    for b, t in itertools.product(range(2), range(3)):
        q, scores = query[b, t], []
        for m in memory[b, : length[b]]:
            if score == "dot":
                scores.append(q @ m)
            elif score == "general":
                scores.append(q @ (attention.key.weight @ m))
            else:
                scores.append(attention.v.weight[0] @ torch.tanh(attention.query(q) + attention.key.weight @ m))
        expected = torch.stack(scores).softmax(0)
        torch.testing.assert_close(weight[b, t, : length[b]], expected, rtol=0, atol=1e-14)  # a few roundings of 1e-16
        assert (weight[b, t, length[b] :] == 0).all()
        torch.testing.assert_close(context[b, t], expected @ memory[b, : length[b]], rtol=0, atol=1e-14)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_a_target_in_one_go_equals_token_by_token(form):
    model, batch = net(**form), pairs([5, 3, 1], [6, 6, 6])
    memory, state = model.encode(batch.source, batch.source_length)
    whole, last, weight = model.decode(batch.target, memory, state)
    assert torch.equal(whole, model(batch.source, batch.source_length, batch.target))
    parts = []
    for t in range(6):
        logits, state, step_weight = model.decode(batch.target[:, t : t + 1], memory, state)
        parts.append(logits)
        if weight is not None:
            torch.testing.assert_close(step_weight[:, 0], weight[:, t], rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), pad=st.integers(0, 3), garbage=st.integers(0, 8))
def test_padding_never_changes_a_result(form, lengths, pad, garbage):
    model, batch = net(**form), pairs(lengths, [4] * len(lengths), pad)
    past = torch.arange(batch.source.shape[1]) >= batch.source_length[:, None]
    source = batch.source.masked_fill(past, garbage)
    logits = model(source, batch.source_length, batch.target)
    for b, length in enumerate(lengths):
        alone = model(batch.source[b : b + 1, :length], torch.tensor([length]), batch.target[b : b + 1])
        torch.testing.assert_close(logits[b : b + 1], alone, rtol=0, atol=1e-13)


def test_tied_weights_are_one_and_an_odd_size_is_refused():
    model = net()
    assert model.output.weight is model.target_embedding.weight
    assert net(tied=False).output.weight is not net(tied=False).target_embedding.weight
    with pytest.raises(UserError, match=r"hidden_size=7 is odd.* set it to 6 or 8"):
        net(hidden_size=7)
