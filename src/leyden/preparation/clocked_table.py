"""CSV and Parquet files with a time column, read with polars as series at evenly spaced times."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from leyden.errors import UserError, nearest
from leyden.preparation.lines import decode_utf8

ISO_TIME = re.compile(r"\d{4}-\d\d(-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?Z?)?)?")
WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}")
MAX_STEPS_PER_ROW = 100  # clock steps per row of a file; more are refused as a probable mistake
MAX_VALUES_PER_BYTE = 100  # values per byte of a Parquet file; more are refused as a probable attack
Gaps = Literal["error", "ffill", "interpolate"]
MISSING_VALUES = ["", "NA", "N/A", "NaN", "nan", "null", "None", "?"]


class Clock(NamedTuple):
    """Evenly spaced times: `origin` + n * `step`, counted in microseconds, months or whole numbers."""

    origin: int
    step: int
    unit: str  # "us" (microseconds), "M" (months), or "" (whole numbers)

    def text(self, n: np.ndarray) -> list[str]:
        """Format the times of the steps `n` (H,) as briefly as possible."""
        ticks = self.origin + self.step * n
        if not self.unit:
            return [str(tick) for tick in ticks]
        texts = np.datetime_as_string(ticks.astype(f"M8[{self.unit}]"), "M" if self.unit == "M" else "auto")
        return [time.replace("T", " ") for time in texts]

    @property
    def pace(self) -> str:
        """The step, as text."""
        return {"us": str(timedelta(microseconds=self.step)), "M": f"{self.step} months"}.get(self.unit, str(self.step))


class Table(NamedTuple):
    """Several series on one clock."""

    clock: Clock
    values: np.ndarray  # (N, D) float64; NaN where the file has none


def read_table(path: Path, time: str, columns: list[str]) -> Table:
    """Read columns of a file in the order of time; missing times become rows without values.

    Raises:
        UserError: if the times do not increase in even steps or a value is not a number (the message names the row; the
            first one after the header is row 1), or if a column or the file cannot be read.
    """
    frame = read_frame(path)
    for name in (time, *columns):
        if name not in frame.columns:
            raise UserError(f"{path} has no column {name!r}{nearest(name, frame.columns)}")
    values = np.stack([_to_numbers(path, frame[name]) for name in columns], axis=1)
    return on_clock(str(path), time, _to_times(path, frame[time]), values)


def on_clock(source: str, name: str, time: np.ndarray, values: np.ndarray) -> Table:
    """Put rows (N, D) on an evenly spaced clock, which is inferred from their times.

    `time` (N,), datetime64[us] or int64, is the column `name` of `source`.
    """
    if len(time) < 2:
        raise UserError(f"{source} has {len(time)} rows: a series needs more")
    unsorted_rows = np.flatnonzero(time[1:] <= time[:-1])
    if len(unsorted_rows):
        row = unsorted_rows[0] + 2
        problem = "is that of the row before too" if time[row - 1] == time[row - 2] else f"comes after {time[row - 2]}"
        problem += "; each row must be later than the last"
        raise UserError(f"{source}, row {row}: the {name} {time[row - 1]} {problem}")
    unit = "us" if time.dtype.kind == "M" else ""
    ticks = time.astype(np.int64)
    step, uneven_rows = _find_step(ticks)
    if len(uneven_rows) and unit and (months := _to_months(time)) is not None:
        unit, ticks = "M", months
        step, uneven_rows = _find_step(ticks)
    clock = Clock(int(ticks[0]), step, unit)
    if len(uneven_rows):
        row = uneven_rows[0] + 2
        problem = f"no whole number of steps of {clock.pace} after {time[row - 2]}; resample the series to even steps"
        raise UserError(f"{source}, row {row}: the {name} {time[row - 1]} is {problem}")
    step_index = (ticks - ticks[0]) // step
    if step_index[-1] > MAX_STEPS_PER_ROW * len(time):
        row = np.diff(step_index).argmax() + 2
        distance = f"{step_index[row - 1] - step_index[row - 2]:,} steps of {clock.pace} after {time[row - 2]}"
        problem = f"the {name} {time[row - 1]} is {distance}: nearly all of the series would be a gap"
        raise UserError(f"{source}, row {row}: {problem}")
    series = np.full((step_index[-1] + 1, values.shape[1]), np.nan)
    series[step_index] = values
    return Table(clock, series)


def without_gaps(source: str, columns: list[str], table: Table, method: Gaps) -> np.ndarray:
    """Return the values (N, D) of a table with its gaps (NaN) filled.

    Raises:
        UserError: if a gap is an error, or a series has no value at all.
    """
    clock, values = table
    gaps = np.argwhere(np.isnan(values))
    if len(gaps) and method == "error":
        first_time, name = clock.text(gaps[:1, 0])[0], columns[gaps[0, 1]]
        advice = "set data.gaps=ffill or data.gaps=interpolate"
        raise UserError(f"{source}: {len(gaps)} values are missing, the first in {name} at {first_time}; {advice}")
    for name, column in zip(columns, values.T, strict=True):
        if np.isnan(column).all():
            raise UserError(f"{source}: the series {name} has no value in its first {len(values)} steps")
    return fill(values, method)


def fill(values: np.ndarray, method: Gaps) -> np.ndarray:
    """Fill the gaps (NaN) of series (N, D) with the previous value or linearly; at the ends, with the nearest value."""
    observed = ~np.isnan(values)
    rows = np.arange(len(values))
    if method == "interpolate":
        columns = [np.interp(rows, rows[k], column[k]) for k, column in zip(observed.T, values.T, strict=True)]
        return np.stack(columns, axis=1)
    source_rows = np.maximum.accumulate(np.where(observed, rows[:, None], 0))
    return np.take_along_axis(values, np.maximum(source_rows, observed.argmax(0)), axis=0)


def _find_step(ticks: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the most frequent distance between ticks, and the indices of distances that are not multiples of it."""
    distances = np.diff(ticks)
    sizes, counts = np.unique(distances, return_counts=True)
    step = int(sizes[counts.argmax()])
    return step, np.flatnonzero(distances % step)


def _to_months(time: np.ndarray) -> np.ndarray | None:
    """Convert times to months if all lie at the same moment of a month or of its last day, otherwise return None."""
    for days in (0, 1):
        shifted_times = time + np.timedelta64(days, "D")
        months = shifted_times.astype("M8[M]")
        if len(np.unique(shifted_times - months.astype(time.dtype))) == 1:
            return months.astype(np.int64) - days  # the last day was shifted into the next month
    return None


def read_frame(path: Path) -> Any:
    """Read a CSV or Parquet file as a polars data frame; the values of a CSV file remain texts."""
    try:
        import polars
    except ImportError:
        raise UserError(f"{path} is read with polars: pip install 'leyden[series]'") from None
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"{path} is neither .csv nor .parquet")
    try:
        if path.suffix.lower() == ".parquet":
            return _read_parquet(path)
        # values remain texts, so that polars does not guess which number is the month
        content = decode_utf8(path.read_bytes(), path).encode()
        return polars.read_csv(content, infer_schema=False, null_values=MISSING_VALUES)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, polars.exceptions.PolarsError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def _read_parquet(path: Path) -> Any:
    """Read a Parquet file, unless its few bytes would unpack to billions of values."""
    import polars

    table, size = polars.scan_parquet(path, glob=False), path.stat().st_size
    values = table.select(polars.len()).collect().item() * len(table.collect_schema())
    if values > MAX_VALUES_PER_BYTE * size:
        reason = f"more than {MAX_VALUES_PER_BYTE} for each of its {size:,} bytes: write it as CSV if that is right"
        raise UserError(f"{path} unpacks to {values:,} values, {reason}")
    return table.collect()


def _to_numbers(path: Path, column: Any) -> np.ndarray:
    """Return a column as float64, NaN where a value is missing."""
    import polars

    if column.dtype.is_nested():
        raise UserError(f"{path}: the column {column.name} holds {column.dtype}, not numbers")
    stripped_column = column.str.strip_chars() if column.dtype == polars.String else column
    numbers = stripped_column.cast(polars.Float64, strict=False)
    bad_rows = ((numbers.is_null() & column.is_not_null()) | numbers.is_infinite().fill_null(False)).arg_true()
    if len(bad_rows):
        raise UserError(
            f"{path}, row {bad_rows[0] + 1}: {column[bad_rows[0]]!r} in the column {column.name} is not a finite number"
        )
    return numbers.to_numpy()


def _to_times(path: Path, column: Any) -> np.ndarray:
    """Return dates and times as datetime64[us], whole numbers as int64."""
    import polars

    if column.dtype == polars.String:
        return _parse_times(path, column.name, column.str.strip_chars().to_list())
    if column.dtype.is_integer():
        times = column.cast(polars.Int64)
    elif column.dtype in (polars.Date, polars.Datetime):
        times = column.cast(polars.Datetime("us"))
    else:
        raise UserError(f"{path}: the column {column.name} holds {column.dtype}, neither times nor whole numbers")
    if missing_rows := times.is_null().arg_true().to_list():
        raise UserError(f"{path}, row {missing_rows[0] + 1}: the column {column.name} holds no time")
    return times.to_numpy()


def _parse_times(path: Path, name: str, texts: list[str | None]) -> np.ndarray:
    """Parse whole numbers, or times in the order year, month, day (ISO 8601), which is the only unambiguous order."""
    pattern = WHOLE_NUMBER if texts and WHOLE_NUMBER.fullmatch(texts[0] or "") else ISO_TIME
    for row, text in enumerate(texts, 1):
        if not pattern.fullmatch(text or ""):
            examples = "2024-01-31, 2024-01-31 13:00 (UTC, if there are time zones), 2024-01, or whole numbers"
            raise UserError(f"{path}, row {row}: {text!r} in the column {name} is not a time: write {examples}")
    try:
        return np.array(
            [(text or "").removesuffix("Z") for text in texts], "M8[us]" if pattern is ISO_TIME else np.int64
        )
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path}: the column {name} holds an invalid time: {error}") from None
