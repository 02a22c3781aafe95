"""CSV and Parquet files with a time column, read with polars as series on an even clock."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leyden.data.lines import decode_utf8
from leyden.errors import UserError, nearest

ISO = re.compile(r"\d{4}-\d\d(-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?Z?)?)?")
WHOLE = re.compile(r"[+-]?\d{1,18}")
MOST_EMPTY = 100  # times as many steps as rows are a mistake
MOST_PACKED = 100  # values for each byte of a Parquet file
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "None", "?"]


class Clock(NamedTuple):
    """Evenly spaced times: `origin` + n * `step`, counted in microseconds, months or whole numbers."""

    origin: int
    step: int
    unit: str  # us, M, or empty

    def text(self, n: np.ndarray) -> list[str]:
        """Write the times at places `n` (H,) as plainly as they allow."""
        ticks = self.origin + self.step * n
        if not self.unit:
            return [str(tick) for tick in ticks]
        written = np.datetime_as_string(ticks.astype(f"M8[{self.unit}]"), "M" if self.unit == "M" else "auto")
        return [time.replace("T", " ") for time in written]

    @property
    def pace(self) -> str:
        """The step, to be read."""
        return {"us": str(timedelta(microseconds=self.step)), "M": f"{self.step} months"}.get(self.unit, str(self.step))


class Table(NamedTuple):
    """Series side by side on one clock."""

    clock: Clock
    values: np.ndarray  # (N, D) float64; NaN where the file has none


def read_table(path: Path, time: str, columns: list[str]) -> Table:
    """Read columns of a file in the order of time; times that are left out become rows without values.

    Raises:
        UserError: with the row (the first after the header is row 1), when the times do not increase in even
            steps or a value is no number, and when a column or the file cannot be read.
    """
    frame = _frame(path)
    for name in (time, *columns):
        if name not in frame.columns:
            raise UserError(f"{path} has no column {name!r}{nearest(name, frame.columns)}")
    values = np.stack([_numbers(path, frame[name]) for name in columns], axis=1)
    return on_clock(f"{path}", time, _times(path, frame[time]), values)


def on_clock(source: str, name: str, time: np.ndarray, values: np.ndarray) -> Table:
    """Put rows (N, D) at `time` (N,) (datetime64[us] or int64), the column `name`, on the clock that they keep."""
    if len(time) < 2:
        raise UserError(f"{source} has {len(time)} rows: a series needs more")
    falling = np.flatnonzero(time[1:] <= time[:-1])
    if len(falling):
        row = falling[0] + 2
        what = "is that of the row before too" if time[row - 1] == time[row - 2] else f"comes after {time[row - 2]}"
        raise UserError(f"{source}, row {row}: the {name} {time[row - 1]} {what}; each row must be later than the last")
    unit = "us" if time.dtype.kind == "M" else ""
    ticks, step, uneven = _steps(time.astype(np.int64))
    if len(uneven) and unit and (months := _months(time)) is not None:
        unit = "M"
        ticks, step, uneven = _steps(months)
    clock = Clock(int(ticks[0]), int(step), unit)
    if len(uneven):
        row = uneven[0] + 2
        raise UserError(
            f"{source}, row {row}: the {name} {time[row - 1]} is no whole number of steps of {clock.pace} after "
            f"{time[row - 2]}; resample the series to even steps"
        )
    place = (ticks - ticks[0]) // step
    if place[-1] > MOST_EMPTY * len(time):
        row = np.diff(place).argmax() + 2
        raise UserError(
            f"{source}, row {row}: the {name} {time[row - 1]} is {place[row - 1] - place[row - 2]:,} steps of "
            f"{clock.pace} after {time[row - 2]}: nearly all of the series would be a gap"
        )
    spread = np.full((place[-1] + 1, values.shape[1]), np.nan)
    spread[place] = values
    return Table(clock, spread)


def _steps(ticks: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Return the ticks, their most frequent distance, and which distances are no multiple of it."""
    gaps = np.diff(ticks)
    sizes, counts = np.unique(gaps, return_counts=True)
    step = int(sizes[counts.argmax()])
    return ticks, step, np.flatnonzero(gaps % step)


def _months(time: np.ndarray) -> np.ndarray | None:
    """Count in months what lies on the same moment of each month, or on the last day of each."""
    for days in (0, 1):
        shifted = time + np.timedelta64(days, "D")
        months = shifted.astype("M8[M]")
        if len(np.unique(shifted - months.astype(time.dtype))) == 1:
            return months.astype(np.int64) - days  # the first day after a month is that month's
    return None


def _frame(path: Path) -> Any:
    """Read the file as a polars data frame."""
    try:
        import polars
    except ImportError:
        raise UserError(f"{path} is read with polars: pip install 'leyden[series]'") from None
    readers = {
        # every value as it is written: nobody guesses which number is the month
        ".csv": lambda: polars.read_csv(
            decode_utf8(path.read_bytes(), path).encode(), infer_schema=False, null_values=MISSING
        ),
        ".parquet": lambda: _parquet(path),
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is neither .csv nor .parquet")
    try:
        return readers[path.suffix.lower()]()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, polars.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _parquet(path: Path) -> Any:
    """Read a Parquet file, unless it says in a few bytes that it has the same value a billion times."""
    import polars

    table, size = polars.scan_parquet(path, glob=False), path.stat().st_size
    values = table.select(polars.len()).collect().item() * len(table.collect_schema())
    if values > MOST_PACKED * size:
        raise UserError(
            f"{path} unpacks to {values:,} values, more than {MOST_PACKED} for each of its {size:,} bytes: write it "
            "as CSV if that is right"
        )
    return table.collect()


def _numbers(path: Path, column: Any) -> np.ndarray:
    """Return a column as float64, NaN where there is nothing."""
    import polars

    if column.dtype.is_nested():
        raise UserError(f"{path}: the column {column.name} holds {column.dtype}, not numbers")
    plain = column.str.strip_chars() if column.dtype == polars.String else column
    numbers = plain.cast(polars.Float64, strict=False)
    bad = ((numbers.is_null() & column.is_not_null()) | numbers.is_infinite().fill_null(False)).arg_true()
    if len(bad):
        raise UserError(
            f"{path}, row {bad[0] + 1}: {column[bad[0]]!r} in the column {column.name} is not a finite number"
        )
    return numbers.to_numpy()


def _times(path: Path, column: Any) -> np.ndarray:
    """Return dates and times as datetime64[us], whole numbers as int64."""
    import polars

    if column.dtype == polars.String:
        return _written_times(path, column.name, column.str.strip_chars().to_list())
    if column.dtype.is_integer():
        times = column.cast(polars.Int64)
    elif column.dtype in (polars.Date, polars.Datetime):
        times = column.cast(polars.Datetime("us"))
    else:
        raise UserError(f"{path}: the column {column.name} holds {column.dtype}, neither times nor whole numbers")
    if missing := times.is_null().arg_true().to_list():
        raise UserError(f"{path}, row {missing[0] + 1}: the column {column.name} holds no time")
    return times.to_numpy()


def _written_times(path: Path, name: str, written: list[str | None]) -> np.ndarray:
    """Read whole numbers, or times in the order year, month, day (ISO 8601): any other order could be another time."""
    form = WHOLE if written and WHOLE.fullmatch(written[0] or "") else ISO
    for row, text in enumerate(written, 1):
        if not form.fullmatch(text or ""):
            raise UserError(
                f"{path}, row {row}: {text!r} in the column {name} is not a time: write 2024-01-31, 2024-01-31 13:00 "
                f"(UTC, if there are time zones), 2024-01, or whole numbers"
            )
    try:
        return np.array([(text or "").removesuffix("Z") for text in written], "M8[us]" if form is ISO else np.int64)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: the column {name} holds what is no time: {error}") from None
