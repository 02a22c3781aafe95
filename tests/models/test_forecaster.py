"""A forecaster's errors equal their closed forms, and a killed run resumes and predicts without its series."""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers.logger import DummyLogger
from sklearn.metrics import mean_absolute_error, mean_squared_error
from torch import nn

from leyden.batch import SeriesBatch
from leyden.config.instantiate import instantiate
from leyden.errors import UserError
from leyden.metrics.forecast import ForecastErrors
from leyden.models.forecaster import Forecaster
from leyden.nets.forecast import NLinear, RecurrentForecaster
from leyden.preparation.clocked_table import fill
from leyden.run.directory import Run
from support.schemas import read, words
from support.series import ADAM, InMemorySeries, Repeat, apart, needs_polars, random_walk
from support.trainer import trainer
from support.training import equal, train_and_resume


@settings(deadline=None, max_examples=25)
@given(season=st.integers(1, 8), horizon=st.integers(1, 6), seed=st.integers(0, 99), missing=st.integers(0, 12))
def test_errors_and_mase_are_those_of_their_closed_forms(season, horizon, seed, missing):
    values = random_walk(90, 3, seed)
    gaps = np.random.default_rng(seed).integers(1, 90, missing)
    values[gaps, seed % 3] = np.nan
    data = InMemorySeries(values, past=4, horizon=horizon, season=season, val_size=20, test_size=30, gaps="ffill",
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


def test_a_loss_counts_only_what_was_observed():
    model = Forecaster(Repeat(2), 1, ADAM)
    zero = torch.zeros(1, 2, 1)
    future, known = torch.tensor([[[3.0], [100.0]]]), torch.tensor([[[True], [False]]])
    batch = SeriesBatch(zero, future, known, zero, zero[:, 0], zero[0, 0].long(), targets_per_row=1.0)
    assert model.training_step(batch, 0).item() == 9
    assert model.training_step(batch._replace(targets_per_row=1.5), 0).item() == 6  # the other rank's row has two
    unknown = torch.zeros(1, 2, 1, dtype=torch.bool)
    assert model.training_step(batch._replace(observed=unknown, targets_per_row=0.0), 0).item() == 0


def test_scaled_errors_leave_out_what_has_no_scale():
    errors = ForecastErrors(3)
    observed = torch.tensor([True, True, False]).expand(2, 4, 3)
    errors.update(torch.ones(2, 4, 3), torch.zeros(2, 4, 3), observed, torch.tensor([0.5, 0.0, 1.0]))
    assert errors.compute()["mase"] == 2  # of the first alone: the second repeats exactly, the third is never seen


def test_a_copy_of_the_model_shares_the_data():
    data = InMemorySeries(random_walk(60), past=5, horizon=4, season=6)
    model = Forecaster(NLinear(1, 4, 2), num_targets=1, optimizer=partial(torch.optim.Adam, lr=0.1))
    data.setup()
    model.schema = data.schema
    twin = copy.deepcopy(model)
    assert twin.schema == data.schema
    assert twin.net is not model.net
    assert all(torch.equal(a, b) and a is not b for a, b in zip(twin.parameters(), model.parameters(), strict=True))


def test_masks_are_read_as_they_are():
    for normalise in ("last", "instance"):
        net = RecurrentForecaster(2, 1, past=6, horizon=3, normalise=normalise, gaps="ffill")
        series = torch.randn(4, 6, 2)
        known, filled = (net(torch.cat([series, torch.full((4, 6, 2), mask)], 2)) for mask in (1.0, 0.0))
        assert not torch.allclose(known, filled)


@pytest.mark.parametrize(("cell", "normalise"), [("lstm", "last"), ("gru", "instance")])
def test_it_learns_one_batch_by_heart(cell: str, normalise: str):
    torch.manual_seed(0)
    data = InMemorySeries(random_walk(60), past=8, horizon=3, season=4, limit=8, batch_size=8)
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
    data = InMemorySeries(values, past=6, horizon=4, season=3, eval_batch_size=3)
    data.setup()
    model = Forecaster(Repeat(4), 2, ADAM)
    model.schema = data.schema
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
    whole, resumed = train_and_resume(7, *TRAIN)
    assert whole.status["metrics"] == resumed.status["metrics"]

    apart(predict_what_comes_after, workdir, whole)


def predict_what_comes_after(folder: Path, run: Run) -> None:
    last = write_csv(folder / "new.csv", "2021-05-01", 40, seed=1)[-1]
    from leyden.checkpoints.choose import choose
    from leyden.evaluation import load

    fresh = instantiate(run.config["data"], "data")
    fresh.setup()
    (folder / "f.csv").unlink()
    model, data = load.load(run.config, choose(run))
    ((names, batch),) = read(data, [folder / "new.csv"])
    assert equal(batch, next(read(fresh, [folder / "new.csv"]))[1])
    said = words(model, data, [folder / "new.csv"])
    assert names == [str(folder / "new.csv")]
    assert [row["time"] for row in said] == ["2021-06-10", "2021-06-11", "2021-06-12"]
    np.testing.assert_allclose(data.schema.answer.unscale(batch.past[0, -1, :2].numpy()), last[:2], rtol=1e-5)
    assert max(abs(row[name] - value) for row in said for name, value in zip("xy", last[:2], strict=True)) < 10
    write_csv(folder / "short.csv", "2021-05-01", 6)
    with pytest.raises(UserError, match=r"short.csv has 6 steps; data.past=6 and data.season=7 need 7"):
        list(read(data, [folder / "short.csv"]))
    (folder / "hours.csv").write_text("day,x,y,z\n" + "".join(f"2020-01-01T{h:02}:00,1,2,3\n" for h in range(24)))
    with pytest.raises(
        UserError, match=r"hours.csv has steps of 1:00:00 from 2020-01-01; the model learnt steps of 1 day"
    ):
        list(read(data, [folder / "hours.csv"]))
