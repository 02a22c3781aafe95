"""Time series as windows of a past and the future after it, split by time alone; and the user's own."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import FilePath, NonNegativeInt, PositiveInt
from torch import Tensor

from leyden.batch import SeriesBatch
from leyden.data.indexed import OrderedLoader, ShuffledLoader, Take
from leyden.data.loader import place
from leyden.data.series.table import Clock, Table, read_table
from leyden.data.split import Fold, Folds, Size, time_fold
from leyden.errors import UserError

Gaps = Literal["error", "ffill", "interpolate"]


class Store:
    """Series on one device, of which batches of windows are gathered.

    `values` (N, D) are scaled and without gaps, the K series to forecast first; `known` (N, D) says which were
    not filled in, and is a part of the past if `masked`. Row 0 stands at place `origin` of the data's clock.
    """

    def __init__(
        self,
        values: np.ndarray,
        known: np.ndarray,
        naive_error: np.ndarray,
        *,
        past: int,
        horizon: int,
        season: int,
        masked: bool,
        origin: int = 0,
        device: torch.device | None = None,
    ) -> None:
        num_targets = len(naive_error)
        device = device or torch.device("cpu")
        seen = torch.from_numpy((np.concatenate([values, known], axis=1) if masked else values).astype(np.float32))
        self._target = seen[:, :num_targets].contiguous().to(device)  # (N, K)
        self._pasts = _windows(seen.to(device), past)
        self._futures = _windows(self._target, horizon)
        self._known = _windows(torch.from_numpy(known[:, :num_targets].copy()).to(device), horizon)
        before = np.concatenate([[0], known[:, :num_targets].sum(1).cumsum()])
        self._num_known = before[horizon:] - before[:-horizon]  # of each future; stays here: no batch waits for it
        self._naive_error = torch.from_numpy(naive_error.astype(np.float32))[None].to(device)
        step = torch.arange(horizon, device=device)
        self._season_before = step - season * (step // season + 1)
        self._past, self._origin = past, origin

    def windows(self, start: np.ndarray, rows: slice = slice(None)) -> SeriesBatch:
        """Return the windows whose futures begin at `start[rows]`, of a batch whose futures begin at `start` (N,)."""
        row = torch.from_numpy(start[rows]).to(self._target.device, non_blocking=True)
        future = self._futures.index_select(0, row)  # (B, H, K)
        season_before = (row[:, None] + self._season_before).flatten()
        return SeriesBatch(
            self._pasts.index_select(0, row - self._past),
            future,
            self._known.index_select(0, row),
            self._target.index_select(0, season_before).view_as(future),
            self._naive_error,
            row + self._origin,
            float(self._num_known[start].mean()),
        )


def _windows(x: Tensor, size: int) -> Tensor:
    """Return every stretch of `size` rows of x (N, D), (N - size + 1, size, D): a view, each stretch contiguous."""
    return x.unfold(0, size, 1).mT


class Series(LightningDataModule):
    """Base of the time series. A subclass says how to `read()` its values, the columns in the order of `columns`.

    The series `targets` are forecast, `horizon` steps at once, from the last `past` steps of themselves and of the
    series `inputs`; `num_targets`, and `num_features` with the inputs, are how many.
    `gaps` are an error, or filled with the value before (`ffill`) or on a line to the next known value
    (`interpolate`, which looks ahead, but never out of its own part); what is filled in is not forecast, and
    the past then holds a mask for each series (1: known).

    The first `train_size` steps (a count or a fraction of all; default: the rest) are for training, the next
    `val_size` for validation, the next `test_size` for testing. A window belongs to the part that holds its whole
    future; its past may reach into the part before. In a cross-validation the first two parts together are cut in
    `folds` + 1 blocks: of the last `folds` of these the one `fold` (from 0) is for validation, and all that is before
    it for training. Every series is scaled to mean 0 and deviation 1 over the training part; the scale travels in the
    checkpoint. `season` is the number of steps after which the series repeats, for the seasonal-naive forecast and
    MASE. `batch_size` and `eval_batch_size` (default: the same) count windows over all ranks. `limit` trains on that
    many of the last windows. `time` is the column of the times in files.
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
        folds: Folds | None = None,
        fold: NonNegativeInt | None = None,
        batch_size: PositiveInt = 32,
        eval_batch_size: PositiveInt | None = None,
        limit: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.series = list(targets)
        self.columns = [*targets, *(inputs or ())]
        if len(set(self.columns)) < len(self.columns):
            raise UserError(f"data.(targets, inputs) is {(self.series, inputs)}: name every series once")
        if time in self.columns:
            raise UserError(f"data.(targets, inputs) name {time}, which is data.time: a clock is no series")
        if num_targets != len(targets):
            raise UserError(
                f"data.num_targets={num_targets}, but data.targets names {len(targets)}: write "
                f"data.num_targets={len(targets)}"
            )
        if num_features != len(self.columns):
            raise UserError(
                f"data.num_features={num_features}, but there are {len(self.columns)} targets and inputs: write "
                f"data.num_features={len(self.columns)}"
            )
        self.num_targets, self.num_features = num_targets, num_features
        self.past, self.horizon, self.season, self._context = past, horizon, season, max(past, season)
        self._time, self._gaps = time, gaps
        self._sizes = {"train": train_size, "val": val_size, "test": test_size}
        self._fold = Fold.chosen(folds, fold)
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size or batch_size
        self._limit, self._seed = limit, seed
        self._starts: dict[str, np.ndarray] = {}
        self._mean = self._std = self._naive_error = np.empty(0)  # learned by setup(), or from a checkpoint

    def read(self) -> Table:
        """Read the values of `columns` and their times."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read, split and fill the series, and learn its scale unless it came from a checkpoint; once."""
        if self._starts:
            return
        table = self.read()
        parts = self._parts(len(table.values))
        starts = self._windows(parts)
        self._clock = table.clock
        edges = sorted({*chain(*parts.values())})
        # each part is filled as if nothing came after it, and so is what lies between a fold and the test
        filled = [self._filled("data", table.clock, table.values[:end])[first:] for first, end in pairwise(edges)]
        self._values, self._known = np.concatenate(filled), ~np.isnan(table.values[: edges[-1]])
        if not len(self._mean):
            self._learn(table.values[slice(*parts["train"])])
        self._starts = starts

    def fingerprint(self) -> dict[str, dict]:
        """Return the number of windows and sha256 (over the horizon and the scaled futures) of each split.

        `setup` made them.
        """
        prints = {}
        for name, starts in self._starts.items():
            values = np.ascontiguousarray(self._scaled(self._values[starts[0] : starts[-1] + self.horizon]))
            digest = hashlib.sha256(f"{self.horizon} steps".encode() + values.tobytes())
            prints[name] = {"size": len(starts), "sha256": digest.hexdigest()}
        return prints

    def state_dict(self) -> dict[str, list]:
        """Return the scale and the clock, so that a checkpoint forecasts without the series."""
        if not len(self._mean):
            return {}
        scale = {"mean": self._mean, "std": self._std, "naive_error": self._naive_error}
        learned = {name: values.tolist() for name, values in scale.items()}
        return {"columns": self.columns, "clock": list(self._clock), **learned}

    def load_state_dict(self, state_dict: dict[str, list]) -> None:
        """Take the scale and the clock of a checkpoint, if it is of these series."""
        if state_dict["columns"] != self.columns:
            return
        self._clock = Clock(*state_dict["clock"])
        self._mean, self._std, self._naive_error = (np.array(state_dict[k]) for k in ("mean", "std", "naive_error"))

    def train_dataloader(self) -> ShuffledLoader[SeriesBatch]:
        """Return the shuffled windows."""
        take, size, ranks = self._served("train")
        return ShuffledLoader(take, size, batch_size=self._batch_size, seed=self._seed, **ranks)

    def val_dataloader(self) -> OrderedLoader[SeriesBatch]:
        """Return every window of the validation part in order."""
        return self._ordered("val")

    def test_dataloader(self) -> OrderedLoader[SeriesBatch]:
        """Return every window of the test part in order."""
        return self._ordered("test")

    def predict_dataloader(self) -> OrderedLoader[SeriesBatch]:
        """Return every window of the test part in order."""
        return self._ordered("test")

    def unscale(self, values: np.ndarray) -> np.ndarray:
        """Return targets (..., K) in their own units."""
        return values * self._std[: self.num_targets] + self._mean[: self.num_targets]

    def times(self, place: np.ndarray) -> list[str]:
        """Return the times of places on the data's clock, as in `SeriesBatch.start`."""
        return self._clock.text(place)

    def load_files(self, paths: Sequence[Path]) -> Iterator[tuple[list[str], SeriesBatch]]:
        """Load the end of each CSV or Parquet file as the past of one window; the file's name stands for each step."""
        if not len(self._mean):
            self.setup()
        for path in paths:
            clock, values = read_table(path, self._time, self.columns)
            if len(values) < self._context:
                raise UserError(
                    f"{path} has {len(values)} steps; data.past={self.past} and data.season={self.season} "
                    f"need {self._context}"
                )
            origin, between = divmod(clock.origin - self._clock.origin, self._clock.step)
            if clock.pace != self._clock.pace or between:
                raise UserError(
                    f"{path} has steps of {clock.pace} from {clock.text(np.zeros(1, int))[0]}; the model learnt steps "
                    f"of {self._clock.pace} from {self.times(np.zeros(1, int))[0]}"
                )
            ahead = ((0, self.horizon), (0, 0))
            store = self._store(
                np.pad(self._scaled(self._filled(str(path), clock, values)), ahead),
                np.pad(~np.isnan(values), ahead),
                origin,
            )
            yield [str(path)] * self.horizon, store.windows(np.array([len(values)]))

    def _parts(self, total: int) -> dict[str, tuple[int, int]]:
        """Return where each part begins and ends; training begins at 0."""
        counts = {
            name: size if isinstance(size, int) else round(size * total)
            for name, size in self._sizes.items()
            if size is not None
        }
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

    def _windows(self, parts: dict[str, tuple[int, int]]) -> dict[str, np.ndarray]:
        """Return the rows where the futures of each part begin."""
        starts = {}
        for name, (first, end) in parts.items():
            # a window that is trained on ends before validation begins: nothing need be left out between the two
            starts[name] = np.arange(max(first, self._context), end - self.horizon + 1)
            if not len(starts[name]):
                before = max(self._context - first, 0)
                context = f"after {before} for data.past={self.past} and data.season={self.season}, " if before else ""
                key = f"data.folds={self._fold.of}" if self._fold and name != "test" else f"data.{name}_size"
                raise UserError(
                    f"{key}: {end - first} steps hold no window: {context}data.horizon={self.horizon} "
                    f"needs {before + self.horizon} in all"
                )
        if self._limit is not None:
            if self._limit > len(starts["train"]):
                raise UserError(f"data.limit={self._limit} is larger than the {len(starts['train'])} training windows")
            starts["train"] = starts["train"][-self._limit :]
        return starts

    def _filled(self, source: str, clock: Clock, values: np.ndarray) -> np.ndarray:
        """Return values (N, D) without gaps."""
        gaps = np.argwhere(np.isnan(values))
        if len(gaps) and self._gaps == "error":
            first, name = clock.text(gaps[:1, 0])[0], self.columns[gaps[0, 1]]
            raise UserError(
                f"{source}: {len(gaps)} values are missing, the first in {name} at {first}; "
                f"set data.gaps=ffill or data.gaps=interpolate"
            )
        for name, column in zip(self.columns, values.T, strict=True):
            if np.isnan(column).all():
                raise UserError(f"{source}: the series {name} has no value in its first {len(values)} steps")
        return fill(values, self._gaps)

    def _learn(self, train: np.ndarray) -> None:
        """Take the scale of the steps to train on (N, D), and the error there of the seasonal-naive forecast."""
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
        self, values: np.ndarray, known: np.ndarray, origin: int = 0, device: torch.device | None = None
    ) -> Store:
        masked = self._gaps != "error"
        sizes = {"past": self.past, "horizon": self.horizon, "season": self.season, "masked": masked}
        return Store(values, known, self._naive_error, **sizes, origin=origin, device=device)

    def _ordered(self, name: str) -> OrderedLoader[SeriesBatch]:
        take, size, ranks = self._served(name)
        return OrderedLoader(take, size, batch_size=self._eval_batch_size, **ranks)

    def _served(self, name: str) -> tuple[Take, int, dict[str, int]]:
        """Windows by number on the trainer's device, how many, and the trainer's rank; without one, this process."""
        device, ranks = place(self.trainer)
        store, starts = self._store(self._scaled(self._values), self._known, device=device), self._starts[name]
        return lambda index, rows: store.windows(starts[index], rows), len(starts), ranks


class SeriesFile(Series):
    """Your own CSV or Parquet file with a column of times, the others of `targets` and `inputs`.

    The other arguments are those of `Series`.
    """

    def __init__(self, path: FilePath, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._path = Path(path)

    def read(self) -> Table:
        """Read the columns that are used."""
        return read_table(self._path, self._time, self.columns)


def fill(values: np.ndarray, how: Gaps) -> np.ndarray:
    """Fill the gaps (NaN) of series (N, D) from the value before or on a line; at an end, from the nearest value."""
    known = ~np.isnan(values)
    rows = np.arange(len(values))
    if how == "interpolate":
        columns = [np.interp(rows, rows[k], column[k]) for k, column in zip(known.T, values.T, strict=True)]
        return np.stack(columns, axis=1)
    source = np.maximum.accumulate(np.where(known, rows[:, None], 0))
    return np.take_along_axis(values, np.maximum(source, known.argmax(0)), axis=0)
