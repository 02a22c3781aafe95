"""Means of logged values, which are read from the device once per interval, not at each step."""

import math
from collections.abc import Callable, Iterable
from itertools import islice
from operator import mul
from typing import Any

import torch
from torch import Tensor

FOLD = 512  # number of values of one name that are merged into one tensor
Gather = Callable[[Any], list[Any]]  # maps this process's value to the values of all training processes


class Meters:
    """Weighted means of named scalars, which stay on their device and are read once per interval.

    Means are over the values of all processes that `gather` collects. Sums are exact, so a checkpoint may split an
    interval anywhere.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor | float]] = {}  # since the last interval(); tensors () or (FOLD,)
        self._weights: dict[str, list[int]] = {}
        self._sums: set[str] = set()  # the names whose values are sums over the samples, not means
        self._hits: dict[str, list[Tensor]] = {}  # masks (B,) that are not counted yet
        self._epoch: dict[str, tuple[float, int]] = {}  # (sum, weight) of the intervals since the last epoch()

    @property
    def names(self) -> list[str]:
        """The names of the values that were added since the last interval()."""
        return [*self._values, *(name for name in self._hits if name not in self._values)]

    def add(self, name: str, value: Tensor | float, weight: int = 1) -> None:
        """Add `value`, a scalar that is the mean over `weight` samples."""
        values = self._values.setdefault(name, [])
        values.append(value.detach() if isinstance(value, Tensor) else value)
        weights = self._weights.setdefault(name, [])
        weights.append(weight)
        if len(weights) % FOLD == 0 and all(isinstance(item, Tensor) for item in values[-FOLD:]):
            values[-FOLD:] = [torch.hstack(values[-FOLD:])]

    def add_hits(self, name: str, hits: Tensor) -> None:
        """Add a mask (B,), true for the samples that count: the mean is their share of all samples."""
        masks = self._hits.setdefault(name, [])
        masks.append(hits)
        if len(masks) == FOLD:
            self._count_hits()

    def interval(self, gather: Gather = lambda value: [value]) -> dict[str, float]:
        """Return the means since the last call; this waits for the device."""
        pending = self._pending(gather)
        self._values.clear()
        self._weights.clear()
        means = {}
        for name, (values, weights) in pending.items():
            totals = values if name in self._sums else map(mul, values, weights)
            total, weight = _sum(totals), sum(weights)
            total_before, count = self._epoch.get(name, (0.0, 0))
            self._epoch[name] = (total_before + total, count + weight)
            means[name] = total / weight
        return means

    def epoch(self) -> dict[str, float]:
        """Return the means over all intervals since the last call."""
        means = {name: total / weight for name, (total, weight) in self._epoch.items()}
        self._epoch.clear()
        return means

    def state_dict(self, gather: Gather = lambda value: [value]) -> dict[str, Any]:
        """Return plain data from which `load_state_dict` continues exactly."""
        pending = self._pending(gather)
        return {
            "values": {name: values for name, (values, _) in pending.items()},
            "weights": {name: weights for name, (_, weights) in pending.items()},
            "epoch": dict(self._epoch),
            "sums": sorted(self._sums),
        }

    def load_state_dict(self, state: dict[str, Any], first: bool = True) -> None:
        """Continue from `state_dict()`.

        Only the `first` of several processes takes the values of the unfinished interval.
        """
        self._values = {name: list(values) for name, values in state["values"].items()} if first else {}
        self._weights = {name: list(weights) for name, weights in state["weights"].items()} if first else {}
        self._epoch = {name: (total, weight) for name, (total, weight) in state["epoch"].items()}
        self._sums = set(state["sums"])

    def _pending(self, gather: Gather) -> dict[str, tuple[list[float], list[int]]]:
        """Return the values and weights of all processes since the last interval()."""
        self._count_hits()
        states = gather((self._read_values(), self._weights))
        names = dict.fromkeys(name for values, _ in states for name in values)
        return {
            name: ([x for v, _ in states for x in v.get(name, ())], [x for _, w in states for x in w.get(name, ())])
            for name in names
        }

    def _count_hits(self) -> None:
        """Replace the masks by their counts; counting each of them at its step would take an operation per step."""
        for name, masks in self._hits.items():
            self._sums.add(name)
            self.add(name, torch.cat(masks).count_nonzero(), sum(map(len, masks)))
        self._hits.clear()

    def _read_values(self) -> dict[str, list[float]]:
        tensors = [v for values in self._values.values() for v in values if isinstance(v, Tensor)]
        numbers = iter(torch.hstack(tensors).float().tolist() if tensors else ())
        return {
            name: [x for v in values for x in (islice(numbers, v.numel()) if isinstance(v, Tensor) else (v,))]
            for name, values in self._values.items()
        }


def _sum(numbers: Iterable[float]) -> float:
    try:
        return math.fsum(numbers)
    except ValueError:  # the numbers hold both infinities
        return math.nan
