"""Means of logged values that cost no host sync, and next to no time, per step."""

import math

import torch
from torch import Tensor

FOLD = 512  # values of one name held before they are summed where they are


class Meters:
    """Weighted means of named scalars, left on the device that made them and read once per interval."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor | float]] = {}  # since the last interval()
        self._weights: dict[str, list[int]] = {}
        self._epoch: dict[str, tuple[float, int]] = {}  # (sum, weight) of the intervals since the last epoch()

    def add(self, name: str, value: Tensor | float, weight: int = 1) -> None:
        """Count in `value`, a scalar that is the mean over `weight` samples."""
        values = self._values.setdefault(name, [])
        values.append(value.detach() if isinstance(value, Tensor) else value)
        self._weights.setdefault(name, []).append(weight)
        if len(values) == FOLD:
            self._fold(name)

    def _fold(self, name: str) -> None:
        values = torch.stack([torch.as_tensor(value) for value in self._values[name]]).float()
        weights = torch.tensor(self._weights[name], device=values.device, dtype=values.dtype)
        self._values[name] = [(values * weights).sum() / weights.sum()]
        self._weights[name] = [sum(self._weights[name])]

    def interval(self) -> dict[str, float]:
        """Return the means since the last call; the one place that waits for the device."""
        means = {}
        for (name, values), weights in zip(self._read().items(), self._weights.values(), strict=True):
            total, weight = math.fsum(v * w for v, w in zip(values, weights, strict=True)), sum(weights)
            before, count = self._epoch.get(name, (0.0, 0))
            self._epoch[name] = (before + total, count + weight)
            means[name] = total / weight
        self._values.clear()
        self._weights.clear()
        return means

    def _read(self) -> dict[str, list[float]]:
        tensors = [v for values in self._values.values() for v in values if isinstance(v, Tensor)]
        numbers = iter(torch.stack([t.float() for t in tensors]).tolist() if tensors else ())
        return {
            name: [next(numbers) if isinstance(v, Tensor) else v for v in values]
            for name, values in self._values.items()
        }

    def epoch(self) -> dict[str, float]:
        """Return the means since the last call, intervals read in between included."""
        self.interval()
        means = {name: total / weight for name, (total, weight) in self._epoch.items()}
        self._epoch.clear()
        return means

    def state_dict(self) -> dict:
        """Return plain data that `load_state_dict` continues from exactly."""
        return {"values": self._read(), "weights": dict(self._weights), "epoch": dict(self._epoch)}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict()`."""
        self._values = {name: list(values) for name, values in state["values"].items()}
        self._weights = {name: list(weights) for name, weights in state["weights"].items()}
        self._epoch = {name: (total, weight) for name, (total, weight) in state["epoch"].items()}
