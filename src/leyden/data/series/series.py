"""Time series that are split by time alone: the base of the data sets, and your own files."""

from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import FilePath, PositiveInt

from leyden.batch import SeriesBatch
from leyden.data.base import Data, sha256
from leyden.data.indexed import Take
from leyden.data.series.table import Clock, Gaps, Table, fill, read_table
from leyden.data.series.windows import WindowStore
from leyden.data.split import Size, time_fold
from leyden.errors import UserError


class Series(Data):
    """Base of the time series. A subclass defines how to `read()` its values, with the columns ordered as `columns`.

    The series `targets` are forecast, `horizon` steps at once, from the last `past` steps of themselves and of the
    series `inputs`. `num_targets` counts the targets, `num_features` the targets and inputs.
    `gaps` are an error, or filled with the value before (`ffill`) or on a line to the next known value
    (`interpolate`, which looks ahead, but never out of its own part). What is filled in is not forecast, and
    the past then holds a mask for each series (1: known).

    The first `train_size` steps (a count or a fraction of all; default: the rest) are for training, the next
    `val_size` for validation, the next `test_size` for testing. A window belongs to the part that holds its whole
    future; its past may reach into the part before. In a cross-validation the first two parts together are cut into
    `folds` + 1 blocks: the last `folds` of them are the folds, and all that is before a fold is for training. Every
    series is scaled to mean 0 and deviation 1 over the training part; the scale travels in the checkpoint. `season` is
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
            raise UserError(f"data.(targets, inputs) name {time}, which is data.time: a clock is no series")
        if num_targets != (count := len(targets)):
            advice = f"write data.num_targets={count}"
            raise UserError(f"data.num_targets={num_targets}, but data.targets names {count}: {advice}")
        if num_features != (count := len(self.columns)):
            advice = f"write data.num_features={count}"
            raise UserError(f"data.num_features={num_features}, but there are {count} targets and inputs: {advice}")
        self.num_targets, self.num_features = num_targets, num_features
        self.past, self.horizon, self.season, self._context = past, horizon, season, max(past, season)
        self._time, self._gaps = time, gaps
        self._sizes = {"train": train_size, "val": val_size, "test": test_size}
        self._mean = self._std = self._naive_error = np.empty(0)  # setup() learns them, or a checkpoint holds them

    def read(self) -> Table:
        """Read the values of `columns` and their times."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, list]:
        """Return the scale and the clock, so that a checkpoint forecasts without the series."""
        if not len(self._mean):
            return {}
        scale = {"mean": self._mean, "std": self._std, "naive_error": self._naive_error}
        lists = {name: values.tolist() for name, values in scale.items()}
        return {"columns": self.columns, "clock": list(self._clock), **lists}

    def load_state_dict(self, state_dict: dict[str, list]) -> None:
        """Take the scale and the clock of a checkpoint, unless it was trained on other series."""
        if state_dict["columns"] != self.columns:
            return
        self._clock = Clock(*state_dict["clock"])
        self._mean, self._std, self._naive_error = (np.array(state_dict[k]) for k in ("mean", "std", "naive_error"))

    def unscale(self, values: np.ndarray) -> np.ndarray:
        """Return targets (..., K) in their own units."""
        return values * self._std[: self.num_targets] + self._mean[: self.num_targets]

    def times(self, place: np.ndarray) -> list[str]:
        """Return the times of places on the data's clock, as in `SeriesBatch.start`."""
        return self._clock.text(place)

    def load_files(self, paths: Sequence[Path]) -> Iterator[tuple[list[str], SeriesBatch]]:
        """Load the end of each CSV or Parquet file as the past of one window; its steps are all named after the file.

        Raises:
            UserError: when a file has fewer steps than a past needs, or its clock is not that of the training series.
        """
        if not len(self._mean):
            self.setup()
        for path in paths:
            clock, values = read_table(path, self._time, self.columns)
            if len(values) < self._context:
                sizes = f"data.past={self.past} and data.season={self.season}"
                raise UserError(f"{path} has {len(values)} steps; {sizes} need {self._context}")
            origin, remainder = divmod(clock.origin - self._clock.origin, self._clock.step)
            if clock.pace != self._clock.pace or remainder:
                steps, own_steps = (
                    f"steps of {c.pace} from {c.text(np.zeros(1, int))[0]}" for c in (clock, self._clock)
                )
                raise UserError(f"{path} has {steps}; the model learnt {own_steps}")
            ahead = ((0, self.horizon), (0, 0))
            scaled = self._scaled(self._filled(str(path), clock, values))
            store = self._store(np.pad(scaled, ahead), np.pad(~np.isnan(values), ahead), origin)
            yield [str(path)] * self.horizon, store.windows(np.array([len(values)]))

    def _make_splits(self) -> dict[str, np.ndarray]:
        """Read and fill the series; return the rows where the futures of each split begin."""
        table = self.read()
        parts = self._parts(len(table.values))
        starts = self._window_starts(parts)
        self._clock = table.clock
        edges = sorted({*chain(*parts.values())})
        # each part is filled as if nothing came after it, and so is what lies between a fold and the test
        filled_parts = [self._filled("data", table.clock, table.values[:end])[first:] for first, end in pairwise(edges)]
        self._values, self._observed = np.concatenate(filled_parts), ~np.isnan(table.values[: edges[-1]])
        if not len(self._mean):  # no checkpoint set the scale
            self._learn_scale(table.values[slice(*parts["train"])])
        return starts

    def _describe(self, split: np.ndarray) -> dict[str, Any]:
        futures = self._scaled(self._values[split[0] : split[-1] + self.horizon])
        return {"size": len(split), "sha256": sha256(f"{self.horizon} steps".encode(), futures)}

    def _take(self, name: str, device: torch.device) -> tuple[Take, int]:
        store = self._store(self._scaled(self._values), self._observed, device=device)
        starts = self._splits[name]
        return lambda index, rows: store.windows(starts[index], rows), len(starts)

    def _parts(self, total: int) -> dict[str, tuple[int, int]]:
        """Return where each part begins and ends; training begins at 0."""
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
        """Return the rows where the futures of each part begin."""
        starts = {}
        for name, (first, end) in parts.items():
            # every training window ends before validation begins, so no gap is needed between the two parts
            starts[name] = np.arange(max(first, self._context), end - self.horizon + 1)
            if not len(starts[name]):
                before = max(self._context - first, 0)
                context = f"after {before} for data.past={self.past} and data.season={self.season}, " if before else ""
                key = f"data.folds={self._fold.of}" if self._fold and name != "test" else f"data.{name}_size"
                need = f"{context}data.horizon={self.horizon} needs {before + self.horizon} in all"
                raise UserError(f"{key}: {end - first} steps hold no window: {need}")
        self._check_limit(len(starts["train"]), "training windows")
        if self._limit is not None:
            starts["train"] = starts["train"][-self._limit :]
        return starts

    def _filled(self, source: str, clock: Clock, values: np.ndarray) -> np.ndarray:
        """Return values (N, D) without gaps."""
        gaps = np.argwhere(np.isnan(values))
        if len(gaps) and self._gaps == "error":
            first, name = clock.text(gaps[:1, 0])[0], self.columns[gaps[0, 1]]
            where = f"the first in {name} at {first}; set data.gaps=ffill or data.gaps=interpolate"
            raise UserError(f"{source}: {len(gaps)} values are missing, {where}")
        for name, column in zip(self.columns, values.T, strict=True):
            if np.isnan(column).all():
                raise UserError(f"{source}: the series {name} has no value in its first {len(values)} steps")
        return fill(values, self._gaps)

    def _learn_scale(self, train: np.ndarray) -> None:
        """Learn the scale of the steps to train on (N, D), and the error of the seasonal-naive forecast there."""
        self._mean, self._std = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
        for name, std in zip(self.columns, self._std, strict=True):
            if std == 0:
                raise UserError(f"data: the series {name} does not change over the {len(train)} steps to train on")
        target = self._scaled(train)[:, : self.num_targets]
        change = np.abs(target[self.season :] - target[: -self.season])  # NaN where either is missing
        self._naive_error = np.nansum(change, axis=0) / np.maximum(1, (~np.isnan(change)).sum(0))

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        return (values - self._mean) / self._std

    def _store(
        self, values: np.ndarray, observed: np.ndarray, origin: int = 0, device: torch.device | None = None
    ) -> WindowStore:
        masked = self._gaps != "error"
        sizes = {"past": self.past, "horizon": self.horizon, "season": self.season, "masked": masked}
        return WindowStore(values, observed, self._naive_error, **sizes, origin=origin, device=device)


class SeriesFile(Series):
    """Your own CSV or Parquet file: a column of times, and the columns of `targets` and `inputs`.

    The other arguments are those of `Series`.
    """

    def __init__(self, path: FilePath, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._path = Path(path)

    def read(self) -> Table:
        """Read the columns that are used."""
        return read_table(self._path, self._time, self.columns)
