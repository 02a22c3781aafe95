"""Forecasting: windows of series, what is filled and scaled, what is measured, and what is refused."""

import copy
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from sklearn.metrics import mean_absolute_error, mean_squared_error
from torch import nn

from leyden.batch import SeriesBatch
from leyden.cli import main
from leyden.config.instantiate import instantiate
from leyden.data.etth import ETTh1
from leyden.data.series import Series, SeriesFile, fill
from leyden.data.series_file import Clock, Table, on_clock, read_table
from leyden.data.sunspots import Sunspots
from leyden.errors import UserError
from leyden.metrics.forecast import ForecastErrors
from leyden.models.forecaster import Forecaster
from leyden.nets.forecast import NLinear, RecurrentForecaster
from leyden.run.directory import Run
from leyden.run.find import list_runs
from support.processes import cli, forked
from support.training import at_step, equal

ETTH1 = Path(__file__).parents[3] / "shared/data/ETTh1.csv"
ADAM = partial(torch.optim.AdamW, lr=1e-2)
HOURS = Clock(0, 3_600_000_000, "us")

needs_polars = pytest.mark.skipif(find_spec("polars") is None, reason="polars is not here")


def apart(function: Callable, *arguments):
    """Call a function in a forked child: threads of polars do not survive a fork, so this process must start none."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


class Given(Series):
    """Values that a test has at hand."""

    def __init__(self, values: np.ndarray, num_inputs: int = 0, **settings) -> None:
        columns = [f"s{k}" for k in range(values.shape[1])]
        num_targets = len(columns) - num_inputs
        sizes = {"num_targets": num_targets, "num_features": len(columns)}
        super().__init__(targets=columns[:num_targets], inputs=columns[num_targets:], **{**sizes, **settings})
        self.values = values

    def read(self) -> Table:
        return Table(HOURS, self.values)


def random_walk(num: int, series: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, series)).cumsum(0)


def whole(loader) -> SeriesBatch:
    batches = list(loader)
    *joined, _ = [
        torch.cat(field) if isinstance(field[0], torch.Tensor) else field for field in zip(*batches, strict=True)
    ]
    return SeriesBatch(*joined, 0.0)._replace(naive_error=batches[0].naive_error)


def trainer(**extra) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{"accelerator": "cpu", "logger": False, **quiet, **extra})


class Repeat(nn.Module):
    """Persistence, with a parameter that an optimizer can hold."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon, self.nothing = horizon, nn.Parameter(torch.zeros(1))

    def forward(self, past: torch.Tensor) -> torch.Tensor:
        return past[:, -1:].expand(-1, self.horizon, -1) + 0 * self.nothing


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
    data = Given(values, past=past, horizon=horizon, season=season, train_size=train, val_size=val, test_size=test,
                 batch_size=1, eval_batch_size=batch, num_inputs=1)  # fmt: skip
    data.setup()
    scaled = ((values - values[:train].mean(0)) / values[:train].std(0)).astype(np.float32)
    context = max(past, season)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    edges = ((context, train), (train, train + val), (train + val, train + val + test))
    for loader, (first, end) in zip(loaders, edges, strict=True):
        got = whole(loader)
        assert sorted(got.start.tolist()) == list(range(first, end - horizon + 1))
        for i, t in enumerate(got.start.tolist()):
            np.testing.assert_array_equal(got.past[i], scaled[t - past : t])
            np.testing.assert_array_equal(got.future[i], scaled[t : t + horizon, :1])
            before = [max(n for n in range(t) if (t + h - n) % season == 0) for h in range(horizon)]
            np.testing.assert_array_equal(got.seasonal[i], scaled[before, :1])
        assert got.observed.all()


@settings(deadline=None, max_examples=25)
@given(season=st.integers(1, 8), horizon=st.integers(1, 6), seed=st.integers(0, 99), missing=st.integers(0, 12))
def test_errors_and_mase_are_those_of_their_closed_forms(season, horizon, seed, missing):
    values = random_walk(90, 3, seed)
    gaps = np.random.default_rng(seed).integers(1, 90, missing)
    values[gaps, seed % 3] = np.nan
    data = Given(values, past=4, horizon=horizon, season=season, val_size=20, test_size=30, gaps="ffill",
                 eval_batch_size=7)  # fmt: skip
    data.setup()
    model = Forecaster(nn.Sequential(Repeat(horizon), Narrow(3)), 3, ADAM)
    got = trainer().test(model, data.test_dataloader(), verbose=False)[0]

    filled = fill(values, "ffill")
    mean, std = np.nanmean(values[:40], 0), np.nanstd(values[:40], 0)
    y = (filled - mean) / std
    starts = range(60, 90 - horizon + 1)
    truth = np.stack([y[t : t + horizon] for t in starts])
    known = np.stack([~np.isnan(values[t : t + horizon]) for t in starts])
    train = (values[:40] - mean) / std
    naive = np.nanmean(np.abs(train[season:] - train[:-season]), 0)
    forecasts = {
        "_persistence": np.stack([np.repeat(y[t - 1 : t], horizon, 0) for t in starts]),
        "_seasonal": np.stack([y[[t + h - season * (h // season + 1) for h in range(horizon)]] for t in starts]),
    }
    for suffix, forecast in {"": forecasts["_persistence"], **forecasts}.items():
        mse, mae = mean_squared_error(truth[known], forecast[known]), mean_absolute_error(truth[known], forecast[known])
        per_series = [
            mean_absolute_error(truth[:, :, k][known[:, :, k]], forecast[:, :, k][known[:, :, k]]) for k in range(3)
        ]
        expected = {"mse": mse, "mae": mae, "rmse": mse**0.5, "mase": np.mean(per_series / naive)}
        for name, value in expected.items():
            assert got[f"test/{name}{suffix}"] == pytest.approx(value, rel=1e-4), name + suffix
    best = min(got["test/mse_persistence"], got["test/mse_seasonal"])
    assert got["test/skill"] == pytest.approx(1 - got["test/mse"] / best, abs=1e-5)


class Narrow(nn.Module):
    """The first K of the features."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., : self.size]


def test_seasonal_naive_has_a_mase_of_one_on_its_own_training_part():
    values = random_walk(70, 1)
    data = Given(values, past=1, horizon=1, season=7, train_size=50, val_size=10, test_size=10, batch_size=1)
    data.setup()
    got = whole(data.train_dataloader())
    assert (got.future - got.seasonal).abs().mean() == pytest.approx(got.naive_error.item(), rel=1e-5)


def test_the_scale_of_a_checkpoint_is_that_of_the_same_series_alone():
    values, settings = random_walk(60, 2), {"past": 2, "horizon": 2, "season": 2}
    whole, more, fewer = Given(values, **settings), Given(10 * values, **settings), Given(values[:, :1], **settings)
    whole.setup()
    for other in (more, fewer):
        other.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        other.setup()
    assert more.state_dict() == whole.state_dict()
    for ours, theirs in zip(more.test_dataloader(), whole.test_dataloader(), strict=True):
        np.testing.assert_allclose(
            more.unscale(ours.future.numpy()), 10 * whole.unscale(theirs.future.numpy()), rtol=1e-4
        )
    assert fewer.state_dict()["mean"] == pytest.approx(whole.state_dict()["mean"][:1])  # its own


def test_another_horizon_is_other_data_to_be_measured_on():
    sizes = {"train_size": 50, "val_size": 15, "test_size": 15, "past": 4, "season": 5, "batch_size": 5}
    prints = []
    for options in ({"horizon": 3}, {"horizon": 5}, {"horizon": 3, "past": 8}):
        data = Given(random_walk(80), **(sizes | options))
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
    one, two = Given(values, **settings, batch_size=5), Given(other, **settings, batch_size=5)
    one.setup(), two.setup()
    assert equal(list(one.train_dataloader()), list(two.train_dataloader()))
    assert (one.unscale(np.ones((1, 2))) == two.unscale(np.ones((1, 2)))).all()
    assert one.fingerprint()["train"] == two.fingerprint()["train"] != one.fingerprint()["test"]


def test_gaps_are_filled_masked_and_not_forecast():
    values = np.array([[1.0], [np.nan], [np.nan], [4.0], [5.0], [np.nan]])
    assert fill(values, "ffill")[:, 0].tolist() == [1, 1, 1, 4, 5, 5]
    assert fill(values, "interpolate")[:, 0].tolist() == [1, 2, 3, 4, 5, 5]
    assert fill(values[1:], "ffill")[:, 0].tolist() == [4, 4, 4, 5, 5]  # nothing before: the first known

    series = random_walk(60, 1)
    series[[5, 41]] = np.nan
    settings = {"past": 3, "horizon": 2, "season": 2, "train_size": 40, "val_size": 10, "test_size": 10}
    data = Given(series, **settings, gaps="ffill", batch_size=1)
    data.setup()
    got = whole(data.train_dataloader())
    for i, t in enumerate(got.start.tolist()):
        assert got.past[i, :, 1].tolist() == [float(t - 3 + n != 5) for n in range(3)]
        assert got.observed[i, :, 0].tolist() == [t + n != 5 for n in range(2)]
    with pytest.raises(UserError, match=r"data: 1 values are missing, the first in s0 at 1970-01-01 05:00; set"):
        Given(series, **settings).setup()


def test_a_loss_counts_only_what_was_observed():
    model = Forecaster(Repeat(2), 1, ADAM)
    zero = torch.zeros(1, 2, 1)
    future, known = torch.tensor([[[3.0], [100.0]]]), torch.tensor([[[True], [False]]])
    batch = SeriesBatch(zero, future, known, zero, zero[:, 0], zero[0, 0].long(), targets_per_row=1.0)
    assert model.training_step(batch, 0).item() == 9
    assert model.training_step(batch._replace(targets_per_row=1.5), 0).item() == 6  # the other rank's row has two
    unknown = torch.zeros(1, 2, 1, dtype=torch.bool)
    assert model.training_step(batch._replace(observed=unknown, targets_per_row=0.0), 0).item() == 0


def times(*texts: str) -> np.ndarray:
    return np.array(texts, "M8[us]")


def test_times_are_put_on_an_even_clock():
    clock, values = on_clock("f", "t", times("2020-01-01", "2020-01-02", "2020-01-05"), np.arange(3.0)[:, None])
    assert values[:, 0].tolist()[:2] == [0, 1]
    assert np.isnan(values[2:4]).all()
    assert clock.text(np.arange(3, 5)) == ["2020-01-04", "2020-01-05"]
    for days in (["01-31", "02-29", "03-31", "05-31"], ["01-15", "02-15", "03-15", "05-15"]):
        clock, values = on_clock("f", "t", times(*(f"2020-{day}" for day in days)), np.ones((4, 1)))
        assert np.isnan(values[:, 0]).tolist() == [False, False, False, True, False]
        assert clock.text(np.arange(2)) == ["2020-01", "2020-02"]
    clock, values = on_clock("f", "t", np.array([3, 5, 9]), np.ones((3, 1)))
    assert (clock.text(np.arange(3)), len(values)) == (["3", "5", "7"], 4)


CSV = {
    "out of order": ("t,x\n2020-01-02,1\n2020-01-03,2\n2020-01-01,3\n", r"row 3: the t 2020-01-01\S* comes after 2020-01-03"),
    "twice": ("t,x\n2020-01-02,1\n2020-01-03,2\n2020-01-03,3\n", "row 3: the t 2020-01-03.* is that of the row before too"),
    "uneven": (
        "t,x\n2020-01-01T00:00,1\n2020-01-01T01:00,2\n2020-01-01T02:00,3\n2020-01-01T03:07,4\n",
        "row 4: the t 2020-01-01T03:07.* is no whole number of steps of 1:00:00 after 2020-01-01T02:00",
    ),
    "no time": ("t,x\n2020-01-01,1\nyesterday,2\n", "row 2: 'yesterday' in the column t is not a time"),
    "no known time": ("t,x\nweek 1,1\nweek 2,2\n", "row 1: 'week 1' in the column t is not a time"),
    "month first": ("t,x\n01/31/2020,1\n02/29/2020,2\n", "row 1: '01/31/2020' in the column t is not a time: write 2024-01-31"),
    "no such day": ("t,x\n2020-01-31,1\n2020-02-31,2\n", "the column t holds what is no time: "),
    "not UTF-8": ("t,x\n2020-01-01,1\n\udce9,2\n", "is not UTF-8: byte 17 is 0xe9"),
    "infinite": ("t,x\n2020-01-01,1\n2020-01-02,inf\n", "row 2: 'inf' in the column x is not a finite number"),
    "far away": ("t,x\n1,1\n2,2\n10000000000000,3\n", "row 3: the t 10000000000000 is 9,999,999,999,998 steps of 1 after 2: nearly all"),
    "no number": ("t,x\n2020-01-01,1\n2020-01-02,many\n", "row 2: 'many' in the column x is not a finite number"),
    "decimal times": ("t,x\n1.5,1\n2.5,2\n", "row 1: '1.5' in the column t is not a time"),
    "one row": ("t,x\n2020-01-01,1\n", "has 1 rows: a series needs more"),
    "no column": ("t,temperature\n1,1\n2,2\n", "has no column 'x'; there are: t, temperature"),
    "near column": ("t,xx\n1,1\n2,2\n", "has no column 'x'; did you mean xx"),
    "not CSV": ('t,x\n1,2,3,4\n"', "cannot be read: "),
}  # fmt: skip


@needs_polars
@pytest.mark.parametrize("case", CSV)
def test_a_file_that_does_not_fit_is_named_with_its_row(tmp_path: Path, case: str):
    text, message = CSV[case]
    (tmp_path / "f.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        apart(read_table, tmp_path / "f.csv", "t", ["x"])
    assert "\n" not in str(caught.value)


@needs_polars
def test_csv_and_parquet_say_the_same(tmp_path: Path):
    (tmp_path / "f.csv").write_text("day,x,y\n2020-01-01,1,NA\n2020-01-02,,2.5\n2020-01-03,3,4\n")
    apart(to_parquet, tmp_path / "f.csv")
    tables = [apart(read_table, tmp_path / f"f.{suffix}", "day", ["y", "x"]) for suffix in ("csv", "parquet")]
    assert tables[0].clock == tables[1].clock
    for table in tables:
        np.testing.assert_array_equal(table.values, [[np.nan, 1], [2.5, np.nan], [4, 3]])


def test_scaled_errors_leave_out_what_has_no_scale():
    errors = ForecastErrors(3)
    observed = torch.tensor([True, True, False]).expand(2, 4, 3)
    errors.update(torch.ones(2, 4, 3), torch.zeros(2, 4, 3), observed, torch.tensor([0.5, 0.0, 1.0]))
    assert errors.compute()["mase"] == 2  # of the first alone: the second repeats exactly, the third is never seen


def test_a_copy_of_the_model_shares_the_data():
    data = Given(random_walk(60), past=5, horizon=4, season=6)
    model = Forecaster(NLinear(1, 4, 2), num_targets=1, optimizer=partial(torch.optim.Adam, lr=0.1))
    model.unscale, model.series = data.unscale, data.series
    twin = copy.deepcopy(model)
    assert twin.unscale.__self__ is data
    assert twin.net is not model.net
    assert all(torch.equal(a, b) and a is not b for a, b in zip(twin.parameters(), model.parameters(), strict=True))


def test_masks_are_read_as_they_are():
    for normalise in ("last", "instance"):
        net = RecurrentForecaster(2, 1, past=6, horizon=3, normalise=normalise, gaps="ffill")
        series = torch.randn(4, 6, 2)
        known, filled = (net(torch.cat([series, torch.full((4, 6, 2), mask)], 2)) for mask in (1.0, 0.0))
        assert not torch.allclose(known, filled)


@needs_polars
def test_months_are_times(tmp_path: Path):
    (tmp_path / "f.csv").write_text("t,x\n2020-01,1\n2020-02,2\n2020-04,4\n")
    clock, values = apart(read_table, tmp_path / "f.csv", "t", ["x"])
    assert clock.text(np.arange(2)) == ["2020-01", "2020-02"]
    assert np.isnan(values[:, 0]).tolist() == [False, False, True, False]


def to_parquet(path: Path) -> None:
    import polars

    polars.read_csv(path, try_parse_dates=True, null_values="NA").write_parquet(path.with_suffix(".parquet"))


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
        Given(random_walk(100), **{"past": 5, "horizon": 4, "season": 6, **settings}).setup()


def test_a_series_that_never_changes_is_refused():
    values = random_walk(60)
    values[:40, 1] = 3
    with pytest.raises(UserError, match="the series s1 does not change over the 42 steps to train on"):
        Given(np.concatenate([values[:40], values[38:40], values[42:]]), past=2, horizon=2, season=2).setup()


def test_limit_trains_on_the_last_windows():
    data = Given(random_walk(100), past=5, horizon=4, season=6, train_size=70, limit=8, batch_size=4)
    data.setup()
    assert sorted(whole(data.train_dataloader()).start.tolist()) == list(range(59, 67))


@pytest.mark.parametrize(("cell", "normalise"), [("lstm", "last"), ("gru", "instance")])
def test_it_learns_one_batch_by_heart(cell: str, normalise: str):
    torch.manual_seed(0)
    data = Given(random_walk(60), past=8, horizon=3, season=4, limit=8, batch_size=8)
    data.setup()
    net = RecurrentForecaster(2, 2, 8, 3, hidden_size=32, cell=cell, normalise=normalise)
    model = Forecaster(net, 2, partial(torch.optim.AdamW, lr=2e-2))
    trainer(max_epochs=200).fit(model, data.train_dataloader())
    assert trainer().validate(model, data.train_dataloader(), verbose=False)[0]["val/mse"] < 5e-3


def test_normalised_nets_move_with_the_level_and_scale_of_the_past():
    torch.manual_seed(0)
    x = torch.randn(4, 12, 3, dtype=torch.float64)
    build = partial(RecurrentForecaster, 3, 2, 12, 5, hidden_size=8, segment=3)
    last, instance, none = (build(normalise=how).double() for how in ("last", "instance", "none"))
    for net in (last, instance, NLinear(2, 12, 5).double()):
        torch.testing.assert_close(net(x + 7), net(x) + 7, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(instance(100 * x), 100 * instance(x), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(none(x + 7), none(x) + 7, atol=0.1)
    each = build(per_series=True).double()
    torch.testing.assert_close(each(x[:, :, [1, 0, 2]]), each(x)[:, :, [1, 0]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(each(x[:, :, :2]), each(x))
    with pytest.raises(UserError, match=r"model.net.segment=5 does not divide the 12 steps"):
        RecurrentForecaster(3, 2, 12, 5, segment=5)
    with pytest.raises(UserError, match=r"model.net.bidirectional=true"):
        RecurrentForecaster(3, 2, 12, 5, bidirectional=True)


def test_the_training_step_never_waits_for_the_device():
    model = Forecaster(NLinear(2, 6, 3), 2, ADAM, loss="huber").to("meta")
    sizes = ((4, 6, 2), (4, 3, 2))
    past, future = (torch.empty(size, device="meta") for size in sizes)  # reading a value from `meta` is an error
    model.training_step(
        SeriesBatch(past, future, future.bool(), future, future[0, :1], future[:, 0, 0].long(), 6.0), 0
    ).backward()


class Pictures(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[str, object] = {}

    def log_figure(self, name: str, figure, step: int) -> None:
        self.drawn[name] = figure


def test_a_test_draws_forecasts_in_the_series_own_units():
    values = 1000 + random_walk(100)
    data = Given(values, past=6, horizon=4, season=3, eval_batch_size=3)
    data.setup()
    model = Forecaster(Repeat(4), 2, ADAM)
    model.series, model.times, model.unscale = data.series, data.times, data.unscale
    pictures = Pictures()
    trainer(logger=pictures).test(model, data.test_dataloader(), verbose=False)
    axes = pictures.drawn["test/forecasts"].axes
    assert len(axes) == 8  # two series of four windows
    lines = {line.get_label(): line.get_ydata() for line in axes[0].lines}
    np.testing.assert_allclose(lines["truth"], values[85:89, 0], rtol=1e-5)
    np.testing.assert_allclose(lines["persistence"], lines["forecast"])
    assert axes[0].get_title() == "from 1970-01-04 13:00"
    assert axes[4].get_ylabel() == "s1"


TRAIN = [
    "data=series", "data.path=f.csv", "data.time=day", "data.targets=[x,y]", "data.inputs=[z]", "data.num_targets=2",
    "data.num_features=3", "data.gaps=ffill", "data.past=6", "data.horizon=3", "data.season=7", "data.batch_size=16",
    "model=lstm_forecaster", "model.net.hidden_size=8", "model.net.num_layers=2", "+model.net.dropout=0.2",
    "+model.net.weight_drop=0.2", "model.net.output_dropout=0.2", "trainer.max_epochs=3",
]  # fmt: skip


def write_csv(path: Path, first: str, num: int, seed: int = 0) -> np.ndarray:
    values = random_walk(num, 3, seed)
    days = np.datetime64(first) + np.arange(num)
    rows = [f"{day},{x},{y},{z}" for day, (x, y, z) in zip(days, values, strict=True)]
    del rows[num // 2]
    path.write_text("\n".join(["day,x,y,z", *rows]))
    return values


@needs_polars
def test_killed_and_resumed_it_ends_alike_and_predicts_without_the_series_what_comes_after_a_file(workdir: Path):
    write_csv(workdir / "f.csv", "2020-01-01", 120)
    assert cli("train", *TRAIN) == 0
    forked(
        lambda: (
            at_step(7, lambda: os.kill(os.getpid(), signal.SIGKILL)),
            main(["train", *TRAIN, "+checkpoint.every_n_steps=2"]),
        )
    )
    assert cli("resume", "last") == 0
    runs = list_runs()
    checkpoints = [torch.load(run.path / "checkpoints/last.ckpt", weights_only=True) for run in runs]
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(checkpoints[0][key], checkpoints[1][key]), key
    assert runs[0].status["metrics"] == runs[1].status["metrics"]

    apart(predict_what_comes_after, workdir, runs[0])


def predict_what_comes_after(folder: Path, run: Run) -> None:
    last = write_csv(folder / "new.csv", "2021-05-01", 40, seed=1)[-1]
    from leyden.checkpoints.choose import choose
    from leyden.evaluation import load

    fresh = instantiate(run.config["data"], "data")
    fresh.setup()
    (folder / "f.csv").unlink()
    model, data = load.load(run.config, choose(run))
    ((names, batch),) = data.load_files([folder / "new.csv"])
    assert equal(batch, next(fresh.load_files([folder / "new.csv"]))[1])
    said = model.predict(batch)
    assert names == [str(folder / "new.csv")] * 3
    assert [row["time"] for row in said] == ["2021-06-10", "2021-06-11", "2021-06-12"]
    np.testing.assert_allclose(data.unscale(batch.past[0, -1, :2].numpy()), last[:2], rtol=1e-5)
    assert max(abs(row[name] - value) for row in said for name, value in zip("xy", last[:2], strict=True)) < 10
    write_csv(folder / "short.csv", "2021-05-01", 6)
    with pytest.raises(UserError, match=r"short.csv has 6 steps; data.past=6 and data.season=7 need 7"):
        list(data.load_files([folder / "short.csv"]))
    (folder / "hours.csv").write_text("day,x,y,z\n" + "".join(f"2020-01-01T{h:02}:00,1,2,3\n" for h in range(24)))
    with pytest.raises(
        UserError, match=r"hours.csv has steps of 1:00:00 from 2020-01-01; the model learnt steps of 1 day"
    ):
        list(data.load_files([folder / "hours.csv"]))


@needs_polars
@pytest.mark.skipif(not ETTH1.is_file(), reason="ETTh1.csv is not here")
def test_etth1_has_the_published_windows_and_persistence():
    sizes, got = apart(persistence_on_etth1)
    assert sizes == [8209, 2785, 2785]
    assert got["test/mse"] == pytest.approx(1.295, abs=2e-3)  # "Repeat" in Zeng et al. 2023, table 2
    assert got["test/mae"] == pytest.approx(0.713, abs=2e-3)


def persistence_on_etth1() -> tuple[list[int], dict[str, float]]:
    columns = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    sizes = {"train_size": 8640, "val_size": 2880, "test_size": 2880, "num_targets": 7, "num_features": 7}
    data = ETTh1(ETTH1, targets=columns, time="date", past=336, horizon=96, season=24, eval_batch_size=512, **sizes)
    data.setup()
    got = trainer().test(Forecaster(Repeat(96), 7, ADAM), data.test_dataloader(), verbose=False)[0]
    return [facts["size"] for facts in data.fingerprint().values()], dict(got)


@pytest.mark.skipif(find_spec("statsmodels") is None, reason="statsmodels is not here")
def test_sunspots_are_whole_years():
    data = Sunspots(targets=["sunspots"], num_targets=1, num_features=1, past=132, horizon=12, season=132)
    clock, values = data.read()
    assert values.shape == (3120, 1)
    assert clock.text(np.array([0, 3119])) == ["1749-01", "2008-12"]
    assert (values[0, 0], values[-1, 0]) == (58.0, 0.8)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("leyden.data.sunspots.find_spec", lambda name: None)
    settings = {"targets": ["sunspots"], "num_targets": 1, "num_features": 1, "past": 2, "horizon": 2, "season": 2}
    with pytest.raises(UserError, match=r"pip install 'leyden\[series\]'"):
        Sunspots(**settings).setup()
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    (tmp_path / "f.csv").write_text("time,sunspots\n1,1\n")
    with pytest.raises(UserError, match=r"pip install 'leyden\[series\]'"):
        SeriesFile(tmp_path / "f.csv", **settings).setup()
