"""Windows of time series: a past, and the future after it."""

import numpy as np
import torch
from torch import Tensor

from leyden.batch import SeriesBatch


class WindowStore:
    """Series on one device, and batches of their windows.

    `values` (N, D) are scaled and without gaps, the K series to forecast first. `observed` (N, D) says which of them
    were not filled in; it becomes part of the past if `masked`. Row 0 is at place 0 of the data's clock.
    """

    def __init__(
        self,
        values: np.ndarray,
        observed: np.ndarray,
        naive_error: np.ndarray,  # (K,)
        *,
        past: int,
        horizon: int,
        season: int,
        masked: bool,
        device: torch.device | None = None,
    ) -> None:
        num_targets = len(naive_error)
        device = device or torch.device("cpu")
        inputs = torch.from_numpy((np.concatenate([values, observed], axis=1) if masked else values).astype(np.float32))
        self._target = inputs[:, :num_targets].contiguous().to(device)  # (N, K)
        self._pasts = _all_windows(inputs.to(device), past)
        self._futures = _all_windows(self._target, horizon)
        self._observed = _all_windows(torch.from_numpy(observed[:, :num_targets].copy()).to(device), horizon)
        num_before = np.concatenate([[0], observed[:, :num_targets].sum(1).cumsum()])
        self._num_observed = num_before[horizon:] - num_before[:-horizon]  # per future, on the host
        self._naive_error = torch.from_numpy(naive_error.astype(np.float32))[None].to(device)
        step = torch.arange(horizon, device=device)
        self._season_before = step - season * (step // season + 1)
        self._past = past

    def windows(self, start: np.ndarray, rows: slice = slice(None)) -> SeriesBatch:
        """Return the windows whose futures begin at `start[rows]`, of a batch whose futures begin at `start` (N,)."""
        row = torch.from_numpy(start[rows]).to(self._target.device, non_blocking=True)
        future = self._futures.index_select(0, row)  # (B, H, K)
        season_before = (row[:, None] + self._season_before).flatten()
        return SeriesBatch(
            self._pasts.index_select(0, row - self._past),
            future,
            self._observed.index_select(0, row),
            self._target.index_select(0, season_before).view_as(future),
            self._naive_error,
            row,
            float(self._num_observed[start].mean()),
        )


def _all_windows(x: Tensor, size: int) -> Tensor:
    """Return all windows of `size` rows of x (N, D), a view (N - size + 1, size, D)."""
    return x.unfold(0, size, 1).mT
