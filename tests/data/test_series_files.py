"""Files of time series are read as evenly spaced steps, or refused with the row that does not fit."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from leyden.data.series.etth import ETTh1
from leyden.data.series.series import SeriesFile
from leyden.data.series.sunspots import Sunspots
from leyden.errors import UserError
from leyden.models.forecaster import Forecaster
from leyden.preparation.clocked_table import on_clock, read_table
from support.datasets import ETTH1, needs
from support.series import ADAM, Repeat, apart, needs_polars
from support.trainer import trainer


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
    "no such day": ("t,x\n2020-01-31,1\n2020-02-31,2\n", "the column t holds an invalid time: "),
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


@needs_polars
def test_months_are_times(tmp_path: Path):
    (tmp_path / "f.csv").write_text("t,x\n2020-01,1\n2020-02,2\n2020-04,4\n")
    clock, values = apart(read_table, tmp_path / "f.csv", "t", ["x"])
    assert clock.text(np.arange(2)) == ["2020-01", "2020-02"]
    assert np.isnan(values[:, 0]).tolist() == [False, False, True, False]


def to_parquet(path: Path) -> None:
    import polars

    polars.read_csv(path, try_parse_dates=True, null_values="NA").write_parquet(path.with_suffix(".parquet"))


@needs_polars
@needs(ETTH1)
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
    monkeypatch.setattr("leyden.data.download.find_spec", lambda name: None)
    settings = {"targets": ["sunspots"], "num_targets": 1, "num_features": 1, "past": 2, "horizon": 2, "season": 2}
    with pytest.raises(UserError, match=r"pip install 'leyden\[series\]'"):
        Sunspots(**settings).setup()
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    (tmp_path / "f.csv").write_text("time,sunspots\n1,1\n")
    with pytest.raises(UserError, match=r"pip install 'leyden\[series\]'"):
        SeriesFile(tmp_path / "f.csv", **settings).setup()
