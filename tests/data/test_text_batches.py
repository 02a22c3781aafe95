"""A batch of text is a pure function of (seed, epoch, index) for any number of ranks, and evaluation counts every target once."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.batch import NO_TARGET, TextBatch
from leyden.data.text.loader import StreamLoader, TextEvalLoader, WindowLoader
from leyden.data.text.token_files import Tokens
from leyden.errors import UserError
from support.text import equal

TRAINERS = [StreamLoader, WindowLoader]


def numbered(size: int) -> Tokens:
    """Tokens that say where they stand."""
    return Tokens(np.arange(size, dtype=np.int32), 1.0, "")


def joined(parts: list[TextBatch]) -> TextBatch:
    rows = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    assert len({part[2:] for part in parts}) == 1
    return TextBatch(*rows, *parts[0][2:])


@pytest.mark.parametrize("loader", TRAINERS)
@settings(max_examples=40, deadline=None)
@given(size=st.integers(40, 300), window=st.integers(1, 7), batch_size=st.integers(1, 4), epoch=st.integers(0, 5))
def test_a_target_is_the_next_token_and_none_comes_twice(loader, size, window, batch_size, epoch):
    batches = loader(numbered(size), window=window, batch_size=batch_size, seed=1)
    drawn = [batches.batch(epoch, index) for index in range(len(batches))]
    assert all(batch.token.shape == (batch_size, window) for batch in drawn)
    assert all(torch.equal(batch.target, batch.token + 1) for batch in drawn)
    targets = torch.cat([batch.target.flatten() for batch in drawn])
    assert len(targets.unique()) == len(targets) > size - 1 - (batch_size + 1) * window
    assert targets.max() < size


def test_streams_go_on_where_they_ended():
    batches = StreamLoader(numbered(500), window=7, batch_size=3, seed=1)
    drawn = list(batches)
    assert [batch.carry for batch in drawn] == [False] + [True] * (len(batches) - 1)
    for before, after in pairwise(drawn):
        assert torch.equal(after.token[:, 0], before.target[:, -1])


@pytest.mark.parametrize("loader", TRAINERS)
def test_every_epoch_has_other_windows_and_every_target_has_its_turn(loader):
    batches = loader(numbered(100), window=8, batch_size=3, seed=1)
    begins = {int(batches.batch(epoch, 0).token[0, 0]) % 8 for epoch in range(300)}
    assert begins == set(range(8))
    seen = {
        t
        for epoch in range(300)
        for i in range(len(batches))
        for t in batches.batch(epoch, i).target.flatten().tolist()
    }
    assert seen == set(range(1, 100))
    assert not equal(batches.batch(0, 0), loader(numbered(100), window=8, batch_size=3, seed=2).batch(0, 0))


@pytest.mark.parametrize("loader", TRAINERS)
def test_an_epoch_can_be_entered_anywhere(loader):
    options = {"window": 5, "batch_size": 4, "seed": 3}
    batches = loader(numbered(300), **options)
    epochs = [list(batches) for _ in range(3)]
    again = loader(numbered(300), **options)
    again.seek(2, 1)
    assert all(map(equal, again, epochs[2][1:]))
    assert not equal(epochs[1][0], epochs[2][0])


@pytest.mark.parametrize("loader", TRAINERS)
def test_ranks_together_hold_the_batch_of_one(loader):
    options = {"window": 5, "batch_size": 4, "seed": 3}
    alone = loader(numbered(300), **options)
    shares = [loader(numbered(300), **options, rank=rank, world_size=2) for rank in range(2)]
    for index in range(len(alone)):
        assert equal(joined([share.batch(1, index) for share in shares]), alone.batch(1, index))
    with pytest.raises(UserError, match=r"data.batch_size=5 does not divide by the 2 ranks"):
        loader(numbered(300), window=5, batch_size=5, world_size=2)


@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(2, 200),
    window=st.integers(1, 30),
    num_streams=st.sampled_from([2, 4, 8, 64]),
    carry=st.booleans(),
    world_size=st.sampled_from([1, 2]),
)
def test_evaluation_counts_every_target_once(size, window, num_streams, carry, world_size):
    ranks = [
        TextEvalLoader(
            numbered(size), window=window, num_streams=num_streams, carry=carry, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    batches = [joined(list(parts)) for parts in zip(*ranks, strict=True)]
    targets, last = [], torch.full((num_streams,), NO_TARGET)
    for index, (token, target, carried, _, targets_per_row) in enumerate(batches):
        valid = target != NO_TARGET
        assert torch.equal(target[valid], token[valid] + 1)
        assert carried == (carry and index > 0)
        if carried:
            goes_on = valid[:, 0]
            assert torch.equal(token[goes_on, 0], last[goes_on])
        last = target[:, -1]
        assert targets_per_row * num_streams == pytest.approx(valid.sum().item())
        targets += target[valid].tolist()
    assert sorted(targets) == list(range(1, size))


@pytest.mark.parametrize("loader", TRAINERS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_other_devices_go_through_torch_and_get_the_same(loader, dtype, monkeypatch: pytest.MonkeyPatch):
    """A device that is not called cpu: tensors instead of the memory map."""
    tokens = Tokens(np.random.default_rng(0).integers(250, size=300).astype(dtype), 1.0, "")
    ours = loader(tokens, window=7, batch_size=4)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_: self)
    theirs = loader(tokens, window=7, batch_size=4, device=torch.device("cuda"))
    assert isinstance(theirs._windows, torch.Tensor)
    assert all(map(equal, ours, theirs))
