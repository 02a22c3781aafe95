"""Time series that are split by time alone: the base of the data sets, and your own files."""

from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import FilePath, PositiveInt

from leyden.batch import SeriesBatch
from leyden.data.base import Data, sha256
from leyden.data.indexed import BatchFunction
from leyden.data.series.windows import WindowStore
from leyden.data.split import Size, time_fold
from leyden.errors import UserError
from leyden.preparation.clocked_table import Gaps, Table, read_table, without_gaps
from leyden.preparation.scale import scale
from leyden.schema import series as fields
from leyden.schema.field import Arrays, Sketch
from leyden.schema.schema import Schema


class Series(Data):
    """Base of the time series. A subclass defines how to `read()` its values, with the columns ordered as `columns`.

    The series `targets` are forecast, `horizon` steps at once, from the last `past` steps of themselves and of the
    series `inputs`. `num_targets` counts the targets, `num_features` the targets and inputs. `gaps` are an error, or
    filled with the previous value (`ffill`) or by linear interpolation (`interpolate`, which looks ahead, but never
    beyond its part). Filled values are not forecast, and if gaps are filled, the past also holds a mask for each series
    (1: observed).

    The first `train_size` steps (a count or a fraction of all; default: the rest) are for training, the next
    `val_size` for validation, the next `test_size` for testing. A window belongs to the part that holds its whole
    future; its past may reach into the part before. In a cross-validation the first two parts together are cut into
    `folds` + 1 blocks: the last `folds` of them are the folds, and all steps before a fold are for training. Every
    series is scaled to mean 0 and deviation 1 over the training part; the checkpoint holds the scale. `season` is
    the number of steps after which the series repeats, for the seasonal-naive forecast and MASE. `limit` trains on
    that many of the last windows. `time` is the column of the times in files. The other arguments are those of `Data`;
    its samples are windows.
    """

    def __init__(
        self,
        targets: list[str],
        num_targets: PositiveInt,
        num_features: PositiveInt,
        past: PositiveInt,
        horizon: PositiveInt,
        season: PositiveInt,
        inputs: list[str] | None = None,
        time: str = "time",
        gaps: Gaps = "error",
        train_size: Size | None = None,
        val_size: Size = 0.15,
        test_size: Size = 0.15,
        batch_size: PositiveInt = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        self.series = list(targets)
        self.columns = [*targets, *(inputs or ())]
        if len(set(self.columns)) < len(self.columns):
            raise UserError(f"data.(targets, inputs) is {(self.series, inputs)}: name every series once")
        if time in self.columns:
            raise UserError(f"data.(targets, inputs) name {time}, which is data.time: the column of times is no series")
        if num_targets != (count := len(targets)):
            advice = f"write data.num_targets={count}"
            raise UserError(f"data.num_targets={num_targets}, but data.targets names {count}: {advice}")
        if num_features != (count := len(self.columns)):
            advice = f"write data.num_features={count}"
            raise UserError(f"data.num_features={num_features}, but there are {count} targets and inputs: {advice}")
        self.num_targets, self.num_features = num_targets, num_features
        self.past, self.horizon, self.season, self._context = past, horizon, season, max(past, season)
        self._time_column, self._gaps = time, gaps
        self._sizes = {"train": train_size, "val": val_size, "test": test_size}

    def read(self) -> Table:
        """Read the values of `columns` and their times."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the schema of a checkpoint, unless it was trained on other series."""
        super().load_state_dict(state_dict)
        if self._field.columns != self.columns:
            self.schema = None

    def to_batch(self, arrays: Arrays) -> SeriesBatch:
        """Return a batch of pasts, without their futures."""
        past, seasonal, start = (torch.from_numpy(arrays[name]) for name in ("past", "seasonal", "start"))
        naive_error = torch.tensor(self._field.naive_error, dtype=torch.float32)[None]
        unknown = torch.zeros_like(seasonal, dtype=torch.bool)
        return SeriesBatch(past, torch.zeros_like(seasonal), unknown, seasonal, naive_error, start, 0.0)

    @property
    def _field(self) -> fields.Series:
        assert self.schema is not None, "call setup() first"
        assert isinstance(self.schema.input, fields.Series)
        return self.schema.input

    def _make_splits(self) -> dict[str, np.ndarray]:
        """Read and fill the series; return the rows at which the futures of each split begin."""
        clock, values = self._table = self.read()
        parts = self._split_steps(len(values))
        starts = self._window_starts(parts)
        edges = sorted({*chain(*parts.values())})
        # each part, and the steps between a fold and the test part, are filled without the values after them
        filled_parts = [
            without_gaps("data", self.columns, Table(clock, values[:end]), self._gaps)[first:]
            for first, end in pairwise(edges)
        ]
        self._values, self._observed = np.concatenate(filled_parts), ~np.isnan(values[: edges[-1]])
        return starts

    def _describe(self, split: np.ndarray) -> dict[str, Any]:
        futures = self._field.scale(self._values[split[0] : split[-1] + self.horizon])
        return {"size": len(split), "sha256": sha256(f"{self.horizon} steps".encode(), futures)}

    def _batch_function(self, name: str, device: torch.device) -> tuple[BatchFunction, int]:
        sizes = {"past": self.past, "horizon": self.horizon, "season": self.season, "masked": self._gaps != "error"}
        naive_error = np.array(self._field.naive_error)
        store = WindowStore(self._field.scale(self._values), self._observed, naive_error, **sizes, device=device)
        starts = self._splits[name]
        return lambda index, rows: store.windows(starts[index], rows), len(starts)

    def _split_steps(self, total: int) -> dict[str, tuple[int, int]]:
        """Return the first step and the end of each part; training begins at 0."""
        sizes = {name: size for name, size in self._sizes.items() if size is not None}
        counts = {name: size if isinstance(size, int) else round(size * total) for name, size in sizes.items()}
        counts = {"train": total - sum(counts.values()), **counts}
        edges = [0, *np.cumsum([counts[name] for name in self._sizes]).tolist()]
        if counts["train"] < 1 or edges[-1] > total:
            sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise UserError(f"data.(train_size, val_size, test_size) take {sizes} of the {total} steps: lower them")
        parts = dict(zip(self._sizes, pairwise(edges), strict=True))
        if self._fold:
            first, end = time_fold(self._fold, edges[2])
            parts |= {"train": (0, first), "val": (first, end)}
        return parts

    def _window_starts(self, parts: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
        """Return the rows at which the futures of each part begin."""
        starts = {}
        for name, (first, end) in parts.items():
            # every training window ends before validation begins, so no gap is needed between the two parts
            starts[name] = np.arange(max(first, self._context), end - self.horizon + 1)
            if not len(starts[name]):
                num_before = max(self._context - first, 0)
                key = f"data.folds={self._fold.num_folds}" if self._fold and name != "test" else f"data.{name}_size"
                requirement = f"data.horizon={self.horizon} needs {num_before + self.horizon} in all"
                if num_before:
                    context = f"after {num_before} for data.past={self.past} and data.season={self.season}"
                    requirement = f"{context}, {requirement}"
                raise UserError(f"{key}: {end - first} steps hold no window: {requirement}")
        self._check_limit(len(starts["train"]), "training windows")
        if self._limit is not None:
            starts["train"] = starts["train"][-self._limit :]
        return starts

    def _make_schema(self) -> Schema:
        first, end = self._split_steps(len(self._table.values))["train"]
        train = self._table.values[first:end]
        mean, std = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
        for name, deviation in zip(self.columns, std, strict=True):
            if deviation == 0:
                raise UserError(f"data: the series {name} does not change over the {len(train)} steps to train on")
        target = scale(train, mean, std)[:, : self.num_targets]
        change = np.abs(target[self.season :] - target[: -self.season])  # NaN if either is missing
        naive_error = np.nansum(change, axis=0) / np.maximum(1, (~np.isnan(change)).sum(0))
        series = fields.Series(
            columns=self.columns,
            num_targets=self.num_targets,
            time=self._time_column,
            clock=self._table.clock,
            past=self.past,
            horizon=self.horizon,
            season=self.season,
            gaps=self._gaps,
            mean=mean.tolist(),
            std=std.tolist(),
            naive_error=naive_error.tolist(),
            sketches=[Sketch.of(column) for column in train.T],
        )
        return Schema(input=series, answer=series)


class SeriesFile(Series):
    """Your own CSV or Parquet file: a column of times, and the columns of `targets` and `inputs`.

    The other arguments are those of `Series`.
    """

    def __init__(self, path: FilePath, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._path = Path(path)

    def read(self) -> Table:
        """Read the columns that are used."""
        return read_table(self._path, self._time_column, self.columns)
