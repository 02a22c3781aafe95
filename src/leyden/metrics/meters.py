"""Means of logged values that cost no host sync per step."""

import torch
from torch import Tensor


class Meters:
    """Weighted sums of named scalars, kept on the device that made them and read once per interval."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # since the last interval()
        self._weights: dict[str, int] = {}
        self._epoch: dict[str, tuple[float, int]] = {}  # (sum, weight) of the intervals read since the last epoch()

    def add(self, name: str, value: Tensor | float, weight: int = 1) -> None:
        """Count in `value`, a scalar that is the mean over `weight` samples."""
        if name not in self._sums:
            self._sums[name] = torch.zeros((), device=value.device if isinstance(value, Tensor) else None)
            self._weights[name] = 0
        if isinstance(value, Tensor):
            self._sums[name].add_(value.detach(), alpha=weight)
        else:
            self._sums[name].add_(value * weight)
        self._weights[name] += weight

    def interval(self) -> dict[str, float]:
        """Return the means since the last call; the one place that waits for the device."""
        if not self._sums:
            return {}
        names = list(self._sums)
        sums = torch.stack([total.cpu() for total in self._sums.values()]).tolist()
        means = {}
        for name, total in zip(names, sums, strict=True):
            weight = self._weights[name]
            before, count = self._epoch.get(name, (0.0, 0))
            self._epoch[name] = (before + total, count + weight)
            means[name] = total / weight
        self._sums.clear()
        self._weights.clear()
        return means

    def epoch(self) -> dict[str, float]:
        """Return the means since the last call, intervals read in between included."""
        self.interval()
        means = {name: total / weight for name, (total, weight) in self._epoch.items()}
        self._epoch.clear()
        return means

    def state_dict(self) -> dict:
        """Return plain data that `load_state_dict` continues from exactly."""
        return {
            "interval": {name: (float(total), self._weights[name]) for name, total in self._sums.items()},
            "epoch": dict(self._epoch),
        }

    def load_state_dict(self, state: dict, device: torch.device | None = None) -> None:
        """Continue from `state_dict()`, with the sums on `device`."""
        interval = state["interval"]
        self._sums = {name: torch.tensor(total, device=device) for name, (total, _) in interval.items()}
        self._weights = {name: weight for name, (_, weight) in interval.items()}
        self._epoch = {name: (total, weight) for name, (total, weight) in state["epoch"].items()}
