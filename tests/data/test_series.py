"""Every window of a series is served once, with the right values; training never sees the steps after it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.errors import UserError
from leyden.preparation.clocked_table import fill
from support.series import InMemorySeries, join_batches, random_walk
from support.training import equal


@settings(deadline=None, max_examples=40)
@given(
    past=st.integers(1, 9),
    horizon=st.integers(1, 9),
    season=st.integers(1, 9),
    sizes=st.tuples(st.integers(20, 40), st.integers(9, 20), st.integers(9, 20), st.integers(0, 5)),
    batch=st.integers(1, 7),
)
def test_every_window_is_served_once_and_is_what_the_series_says(past, horizon, season, sizes, batch):
    train, val, test, _ = sizes
    values = random_walk(sum(sizes))
    data = InMemorySeries(values, past=past, horizon=horizon, season=season, train_size=train, val_size=val, test_size=test,
                 batch_size=1, eval_batch_size=batch, num_inputs=1)  # fmt: skip
    data.setup()
    scaled = ((values - values[:train].mean(0)) / values[:train].std(0)).astype(np.float32)
    context = max(past, season)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    edges = ((context, train), (train, train + val), (train + val, train + val + test))
    for loader, (first, end) in zip(loaders, edges, strict=True):
        got = join_batches(loader)
        assert sorted(got.start.tolist()) == list(range(first, end - horizon + 1))
        for i, t in enumerate(got.start.tolist()):
            np.testing.assert_array_equal(got.past[i], scaled[t - past : t])
            np.testing.assert_array_equal(got.future[i], scaled[t : t + horizon, :1])
            before = [max(n for n in range(t) if (t + h - n) % season == 0) for h in range(horizon)]
            np.testing.assert_array_equal(got.seasonal[i], scaled[before, :1])
        assert got.observed.all()


def test_seasonal_naive_has_a_mase_of_one_on_its_own_training_part():
    values = random_walk(70, 1)
    data = InMemorySeries(values, past=1, horizon=1, season=7, train_size=50, val_size=10, test_size=10, batch_size=1)
    data.setup()
    got = join_batches(data.train_dataloader())
    assert (got.future - got.seasonal).abs().mean() == pytest.approx(got.naive_error.item(), rel=1e-5)


def test_the_scale_of_a_checkpoint_is_that_of_the_same_series_alone():
    values, settings = random_walk(60, 2), {"past": 2, "horizon": 2, "season": 2}
    whole, more, fewer = (
        InMemorySeries(values, **settings),
        InMemorySeries(10 * values, **settings),
        InMemorySeries(values[:, :1], **settings),
    )
    whole.setup()
    for other in (more, fewer):
        other.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        other.setup()
    assert more.state_dict() == whole.state_dict()
    for ours, theirs in zip(more.test_dataloader(), whole.test_dataloader(), strict=True):
        np.testing.assert_allclose(
            more.schema.answer.unscale(ours.future.numpy()),
            10 * whole.schema.answer.unscale(theirs.future.numpy()),
            rtol=1e-4,
        )
    assert fewer.schema.input.mean == pytest.approx(whole.schema.input.mean[:1])  # its own


def test_another_horizon_is_other_data_to_be_measured_on():
    sizes = {"train_size": 50, "val_size": 15, "test_size": 15, "past": 4, "season": 5, "batch_size": 5}
    prints = []
    for options in ({"horizon": 3}, {"horizon": 5}, {"horizon": 3, "past": 8}):
        data = InMemorySeries(random_walk(80), **(sizes | options))
        data.setup()
        prints.append(data.fingerprint()["test"]["sha256"])
    assert prints[0] == prints[2] != prints[1]


@pytest.mark.parametrize("gaps", ["ffill", "interpolate"])
def test_training_never_sees_what_comes_after(gaps: str):
    values = random_walk(80)
    values[[0, 10, 11, 49, 50, 64, 65, 79]] = np.nan  # at both ends and on both sides of the borders too
    other = values.copy()
    other[50:] = 1e6 * random_walk(30, seed=1)
    settings = {"past": 4, "horizon": 3, "season": 5, "train_size": 50, "val_size": 15, "test_size": 15, "gaps": gaps}
    one, two = InMemorySeries(values, **settings, batch_size=5), InMemorySeries(other, **settings, batch_size=5)
    one.setup(), two.setup()
    assert equal(list(one.train_dataloader()), list(two.train_dataloader()))
    assert one.schema == two.schema
    assert one.fingerprint()["train"] == two.fingerprint()["train"] != one.fingerprint()["test"]


def test_gaps_are_filled_masked_and_not_forecast():
    values = np.array([[1.0], [np.nan], [np.nan], [4.0], [5.0], [np.nan]])
    assert fill(values, "ffill")[:, 0].tolist() == [1, 1, 1, 4, 5, 5]
    assert fill(values, "interpolate")[:, 0].tolist() == [1, 2, 3, 4, 5, 5]
    assert fill(values[1:], "ffill")[:, 0].tolist() == [4, 4, 4, 5, 5]  # nothing before: the first known

    series = random_walk(60, 1)
    series[[5, 41]] = np.nan
    settings = {"past": 3, "horizon": 2, "season": 2, "train_size": 40, "val_size": 10, "test_size": 10}
    data = InMemorySeries(series, **settings, gaps="ffill", batch_size=1)
    data.setup()
    got = join_batches(data.train_dataloader())
    for i, t in enumerate(got.start.tolist()):
        assert got.past[i, :, 1].tolist() == [float(t - 3 + n != 5) for n in range(3)]
        assert got.observed[i, :, 0].tolist() == [t + n != 5 for n in range(2)]
    with pytest.raises(UserError, match=r"data: 1 values are missing, the first in s0 at 1970-01-01 05:00; set"):
        InMemorySeries(series, **settings).setup()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_features": 3}, r"data.num_features=3, but there are 2 targets and inputs: write data.num_features=2"),
        ({"num_targets": 1}, r"data.num_targets=1, but data.targets names 2: write data.num_targets=2"),
        ({"train_size": 90}, r"take train 90, val 15, test 15 of the 100 steps"),
        ({"val_size": 60, "test_size": 60}, r"take train -20, val 60, test 60 of the 100 steps"),
        ({"past": 70}, r"data.train_size: 70 steps hold no window: after 70 for data.past=70 and data.season=6, data.horizon=4 needs 74"),
        ({"test_size": 3}, r"data.test_size: 3 steps hold no window: data.horizon=4 needs 4"),
        ({"limit": 90}, r"data.limit=90 is larger than the 61 training windows"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_told_in_numbers(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        InMemorySeries(random_walk(100), **{"past": 5, "horizon": 4, "season": 6, **settings}).setup()


def test_a_series_that_never_changes_is_refused():
    values = random_walk(60)
    values[:40, 1] = 3
    with pytest.raises(UserError, match="the series s1 does not change over the 42 steps to train on"):
        InMemorySeries(np.concatenate([values[:40], values[38:40], values[42:]]), past=2, horizon=2, season=2).setup()


def test_limit_trains_on_the_last_windows():
    data = InMemorySeries(random_walk(100), past=5, horizon=4, season=6, train_size=70, limit=8, batch_size=4)
    data.setup()
    assert sorted(join_batches(data.train_dataloader()).start.tolist()) == list(range(59, 67))
