"""Time series: reads the past of a forecast from a table with times, and formats a forecast as values at times."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from leyden.errors import UserError
from leyden.preparation.clocked_table import Clock, Gaps, Table, read_table, without_gaps
from leyden.preparation.scale import scale, unscale
from leyden.schema.field import Arrays, Field, Item, Sketch


class Series(Field):
    """Several series on one clock; the next `horizon` steps of the first `num_targets` are forecast from `past` steps.

    `sketches`, `mean` and `std` describe the training part of each series; `naive_error` is the mean absolute error of
    the seasonal-naive forecast of each target on that part.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".parquet")

    kind: str = "series"
    columns: list[str]
    num_targets: int
    time: str  # the column of times
    clock: Clock
    past: int
    horizon: int
    season: int
    gaps: Gaps
    mean: list[float]  # float64
    std: list[float]
    naive_error: list[float]
    sketches: list[Sketch]

    def items_of_file(self, path: Path) -> Iterable[Item]:
        """Treat a CSV or Parquet file as one sample, whose last steps are the past."""
        return [Item(str(path), path)]

    def prepare(self, item: Item) -> tuple[Arrays, str | None]:
        """Read a file; return its last steps as the fields of a batch of one."""
        path: Path = item.value
        clock, values = read_table(path, self.time, self.columns)
        if len(values) < (num_needed := max(self.past, self.season)):
            sizes = f"data.past={self.past} and data.season={self.season}"
            raise UserError(f"{path} has {len(values)} steps; {sizes} need {num_needed}")
        origin, remainder = divmod(clock.origin - self.clock.origin, self.clock.step)
        if clock.pace != self.clock.pace or remainder:
            steps, model_steps = (f"steps of {c.pace} from {c.text(np.zeros(1, int))[0]}" for c in (clock, self.clock))
            raise UserError(f"{path} has {steps}; the model learnt {model_steps}")
        series = without_gaps(str(path), self.columns, Table(clock, values), self.gaps)
        remarks = (sketch.remark(column) for sketch, column in zip(self.sketches, series[-self.past :].T, strict=True))
        outlier = next(((name, r) for name, r in zip(self.columns, remarks, strict=True) if r), None)
        past = self.scale(series)
        target = past[:, : self.num_targets].astype(np.float32)
        if self.gaps != "error":
            past = np.concatenate([past, ~np.isnan(values)], axis=1)
        step = np.arange(self.horizon)
        row = {
            "past": past[-self.past :].astype(np.float32),
            "seasonal": target[len(target) + step - self.season * (step // self.season + 1)],
            "start": np.array(origin + len(values)),
        }
        return row, outlier and f"{outlier[0]} is {outlier[1]}"

    def collate(self, rows: Sequence[Arrays]) -> Arrays:
        """Return the `past` (B, P, F), the `seasonal` forecast (B, H, K), and the `start` (B,) on the clock."""
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def to_records(self, answers: Arrays, samples: Arrays) -> list[list[dict[str, Any]]]:
        """Return a record for each step of each future: its `time`, and the unscaled value of each series."""
        if "prediction" not in answers:
            return super().to_records(answers, samples)
        rows = []
        for start, values in zip(samples["start"].tolist(), self.unscale(answers["prediction"]), strict=True):
            times = self.clock.text(np.arange(start, start + len(values)))
            names = self.columns[: self.num_targets]
            named_rows = [dict(zip(names, row, strict=True)) for row in values.tolist()]
            rows.append([{"time": time, **row} for time, row in zip(times, named_rows, strict=True)])
        return rows

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Scale values (N, D)."""
        return scale(values, *self._scaling)

    def unscale(self, values: np.ndarray) -> np.ndarray:
        """Return targets (…, K) unscaled."""
        return unscale(values, *(part[: self.num_targets] for part in self._scaling))

    def describe(self) -> str:
        """Name the targets, the horizon, the time step, the other inputs, and the number of past steps."""
        targets, inputs = self.columns[: self.num_targets], self.columns[self.num_targets :]
        sources = f" from these and {', '.join(inputs)}" if inputs else ""
        return f"{', '.join(targets)}, {self.horizon} steps of {self.clock.pace}{sources}, after {self.past} known ones"

    @property
    def _scaling(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array(self.mean), np.array(self.std)
