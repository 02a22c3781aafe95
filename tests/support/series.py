"""Time series for tests, and the persistence forecast."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from leyden.batch import SeriesBatch
from leyden.data.series.series import Series
from leyden.preparation.clocked_table import Clock, Table

ADAM = partial(torch.optim.AdamW, lr=1e-2)
HOURS = Clock(0, 3_600_000_000, "us")
needs_polars = pytest.mark.skipif(find_spec("polars") is None, reason="polars is not installed")


def apart(function: Callable, *arguments):
    """Call a function in a forked child: threads of polars do not survive a fork, so this process must start none."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


class InMemorySeries(Series):
    """Series in memory, passed in by a test."""

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


def join_batches(loader) -> SeriesBatch:
    batches = list(loader)
    *joined, _ = [
        torch.cat(field) if isinstance(field[0], torch.Tensor) else field for field in zip(*batches, strict=True)
    ]
    return SeriesBatch(*joined, 0.0)._replace(naive_error=batches[0].naive_error)


class Repeat(nn.Module):
    """Persistence, with a parameter that an optimizer can hold."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon, self.unused = horizon, nn.Parameter(torch.zeros(1))

    def forward(self, past: torch.Tensor) -> torch.Tensor:
        return past[:, -1:].expand(-1, self.horizon, -1) + 0 * self.unused
