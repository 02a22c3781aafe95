"""Loaders for a token file: parallel streams, windows in random order, and every target once for evaluation.

A window of T tokens has T targets, the same one token further. Everything random in an epoch is drawn from
(seed, epoch) alone. On the CPU a batch is copied from the memory map; elsewhere the tokens are on the device.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leyden.batch import NO_TARGET, TextBatch
from leyden.data.loader import Loader, check_divides
from leyden.data.text.token_files import Tokens
from leyden.errors import UserError


class TextTrainLoader(Loader[TextBatch]):
    """Base of the two training loaders. `batch_size` counts the rows over all ranks; each rank takes its own.

    The start of the first window is drawn in each epoch, so that each epoch has other windows. The number of
    batches stays the same, and tokens that do not fill one are left out.
    """

    carry: bool

    def __init__(
        self,
        tokens: Tokens,
        *,
        window: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        check_divides("data.batch_size", batch_size, world_size)
        size = len(tokens.ids)
        if size < window * (batch_size + 1):  # one window more than a batch has, because the first starts at an offset
            rows = f"data.batch_size={batch_size} rows of data.window={window}"
            reason = f"there are {size} to train on: lower one of the two, or give more text"
            raise UserError(f"{rows} need {window * (batch_size + 1)} tokens, but {reason}")
        super().__init__((size - window) // (window * batch_size))
        self._windows = _all_windows(tokens.ids, window + 1, device)
        self._size, self._window_size, self._batch_size, self._seed = size, window, batch_size, seed
        self._rows_per_rank = batch_size // world_size
        self._first_row = rank * self._rows_per_rank
        self._chars_per_token = tokens.chars_per_token

    def batch(self, epoch: int, index: int) -> TextBatch:
        """Return this rank's rows of batch `index` of epoch `epoch`."""
        window = self._windows[self._starts(epoch, index)]  # (B, T + 1)
        window = window.long() if isinstance(window, Tensor) else torch.from_numpy(window.astype(np.int64))
        carry, targets_per_row = self.carry and index > 0, float(self._window_size)
        return TextBatch(window[:, :-1], window[:, 1:], carry, self._chars_per_token, targets_per_row)

    def _starts(self, epoch: int, index: int) -> Any:
        """Return an index of the tokens at which this rank's windows start."""
        raise NotImplementedError


class StreamLoader(TextTrainLoader):
    """Reads the text in streams side by side, one window at a time: row b continues in the next batch."""

    carry = True

    def __init__(self, tokens: Tokens, **options: Any) -> None:
        super().__init__(tokens, **options)
        self._stream_length = len(self) * self._window_size
        self._offset = lru_cache(maxsize=1)(self._draw_offset)

    def _starts(self, epoch: int, index: int) -> slice:
        start = self._offset(epoch) + self._first_row * self._stream_length + index * self._window_size
        return slice(start, start + (self._rows_per_rank - 1) * self._stream_length + 1, self._stream_length)

    def _draw_offset(self, epoch: int) -> int:
        num_spare = self._size - 1 - self._batch_size * self._stream_length  # tokens beyond the streams
        return int(np.random.default_rng([self._seed, epoch]).integers(num_spare + 1))


class WindowLoader(TextTrainLoader):
    """Reads windows that do not overlap, in random order; no state is carried from one window to the next."""

    carry = False

    def __init__(self, tokens: Tokens, **options: Any) -> None:
        super().__init__(tokens, **options)
        self._order = lru_cache(maxsize=1)(self._draw_order)

    def _starts(self, epoch: int, index: int) -> np.ndarray | Tensor:
        first = index * self._batch_size + self._first_row
        return self._order(epoch)[first : first + self._rows_per_rank]

    def _draw_order(self, epoch: int) -> np.ndarray | Tensor:
        rng = np.random.default_rng([self._seed, epoch])
        count = (self._size - self._window_size) // self._window_size
        num_spare = self._size - 1 - count * self._window_size  # tokens beyond the windows
        starts = rng.integers(num_spare + 1) + self._window_size * rng.permutation(count)
        windows = self._windows
        return torch.from_numpy(starts).to(windows.device) if isinstance(windows, Tensor) else starts


class TextEvalLoader(Loader[TextBatch]):
    """Reads every target once: in `num_streams` parallel streams if `carry`, otherwise in batches of as many windows.

    After the end of a stream or of the text, the targets of a row are NO_TARGET. The ranks share the rows.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        window: int,
        num_streams: int,
        carry: bool,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        check_divides("data.eval_streams", num_streams, world_size)
        count = len(tokens.ids) - 1  # number of targets
        if count < 1:
            raise UserError(f"{len(tokens.ids)} tokens to evaluate on hold no target: 2 are needed")
        length = -(-count // num_streams)  # targets per stream
        self._window_size = min(window, length if carry else count)
        steps = -(-length // self._window_size) if carry else -(-count // (num_streams * window))
        super().__init__(steps)
        row, step = np.arange(num_streams), np.arange(steps)[:, None]
        starts = row * length + step * self._window_size if carry else (step * num_streams + row) * self._window_size
        ends = np.minimum((row + 1) * length if carry else count, count)
        share = num_streams // world_size
        rows = slice(rank * share, (rank + 1) * share)
        num_targets = np.clip(np.broadcast_to(ends, starts.shape) - starts, 0, self._window_size)  # (steps, rows)
        self._targets_per_row = num_targets.mean(1).tolist()
        self._chars_per_token = tokens.chars_per_token
        self._device = device or torch.device("cpu")
        self._starts, self._num_targets = (
            torch.from_numpy(array[:, rows].copy()).to(self._device) for array in (starts, num_targets)
        )
        self._ids = torch.from_numpy(tokens.ids.astype(np.int32)).to(self._device)
        self._carry = carry

    def batch(self, epoch: int, index: int) -> TextBatch:
        """Return this rank's rows of batch `index`, the same in every epoch."""
        step = torch.arange(self._window_size + 1, device=self._device)
        position = (self._starts[index, :, None] + step).clamp(max=len(self._ids) - 1)
        window = self._ids[position].long()  # (B, T + 1)
        target = window[:, 1:].masked_fill(step[:-1] >= self._num_targets[index, :, None], NO_TARGET)
        carry, targets_per_row = self._carry and index > 0, self._targets_per_row[index]
        return TextBatch(window[:, :-1], target, carry, self._chars_per_token, targets_per_row)


def _all_windows(ids: np.ndarray, width: int, device: torch.device | None) -> np.ndarray | Tensor:
    """Return a view (N - width + 1, width) of all windows of the memory map, or of the tokens on the device."""
    if device is None or device.type == "cpu":  # numpy copies rows into int64 twice as fast as torch
        return np.lib.stride_tricks.sliding_window_view(ids, width)
    return torch.from_numpy(ids.astype(np.int32) if ids.dtype == np.uint16 else ids).to(device).unfold(0, width, 1)
