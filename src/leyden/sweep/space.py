"""The search space of a sweep: the keys that vary, and the overrides that all jobs share."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from leyden.errors import UserError, nearest

SEPARATOR = ", "  # between the keys, and between the values, of pairs
Value = str | int | float | bool  # None and structured values are kept as the text of an override


@dataclass(frozen=True)
class Axis:
    """One key of the space, or several keys whose values go together.

    `values` are the values in a grid; None for an interval.
    """

    key: str  # as in an override: model.net.width, +trainer.max_steps
    distribution: BaseDistribution
    values: tuple[Value, ...] | None
    # the key varies only if each of these other keys has one of its values
    when: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # for keys whose values go together: the texts of their values by the value of this axis, "8, 0.01"
    pairs: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The keys that this axis sets, without Hydra's plus."""
        return [key.lstrip("+") for key in self.key.split(SEPARATOR)] if self.pairs else [self.name]

    @property
    def name(self) -> str:
        """The key without Hydra's plus."""
        return SEPARATOR.join(key.lstrip("+") for key in self.key.split(SEPARATOR))

    def is_active(self, point: Mapping[str, Value]) -> bool:
        """Return whether this key varies at a point, which has values for the keys before it."""
        return all(key in point and text_of(point[key]) in texts for key, texts in self.when.items())

    def text(self, value: Value) -> str:
        """Format a value for an override; a range's 0.30000000000000004 becomes 0.3."""
        if self.values and isinstance(self.distribution, FloatDistribution):
            return text_of(min(self.values, key=lambda number: abs(number - value)))
        return text_of(value)

    def overrides(self, value: Value) -> list[str]:
        """Return the overrides that give this axis a value."""
        if not self.pairs:
            return [f"{self.key}={self.text(value)}"]
        return [f"{key}={text}" for key, text in zip(self.key.split(SEPARATOR), self.pairs[str(value)], strict=True)]

    def suggest(self, trial: Trial) -> Value:
        """Have a trial's sampler choose a value."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return trial.suggest_categorical(self.name, choices)
            case IntDistribution(low=low, high=high, step=step, log=log):
                return trial.suggest_int(self.name, low, high, step=step, log=log)
            case FloatDistribution(low=low, high=high, step=step, log=log):
                return trial.suggest_float(self.name, low, high, step=step, log=log)
        raise TypeError(self.distribution)

    def convert(self, value: Any) -> Value:
        """Convert a value that the user wrote to a value of this axis.

        Raises:
            UserError: if the axis has no such value.
        """
        if isinstance(self.distribution, CategoricalDistribution):
            for choice in self.distribution.choices:
                if text_of(choice) == text_of(value):
                    return choice
            values = ("; " if self.pairs else ", ").join(map(text_of, self.distribution.choices))
            raise UserError(f"{self.name}={text_of(value)} is not in the search space, which has {values}")
        low, high, kind = self.distribution.low, self.distribution.high, type(self.distribution.low)
        is_number = isinstance(value, kind | int) and not isinstance(value, bool) and low <= value <= high
        if not is_number or (self.values and not any(math.isclose(value, number) for number in self.values)):
            step = f" in steps of {self.distribution.step}" if self.distribution.step else ""
            raise UserError(
                f"{self.name}={text_of(value)} is not in the search space, which goes from {low} to {high}{step}"
            )
        return value


@dataclass(frozen=True)
class Space:
    """The keys that a sweep varies and the overrides that all its jobs share, in the user's order."""

    items: tuple[Axis | str, ...]

    @property
    def axes(self) -> list[Axis]:
        """The keys that vary."""
        return [item for item in self.items if isinstance(item, Axis)]

    def suggest(self, trial: Trial) -> dict[str, Value]:
        """Have a trial choose a point; a conditional key is chosen after the key that it depends on."""
        point: dict[str, Value] = {}
        for axis in self.axes:
            if axis.is_active(point):
                point[axis.name] = axis.suggest(trial)
        return point

    def grid(self) -> list[dict[str, Value]]:
        """List all points, the last key varying fastest.

        Raises:
            UserError: for an interval, which has infinitely many values.
        """
        points: list[dict[str, Value]] = [{}]
        for axis in self.axes:
            if axis.values is None:
                raise UserError(
                    f"{axis.name}: an interval has no grid: write choice(…) or range(…), or choose another "
                    "hydra.sweeper.sampler: random, qmc, tpe, gp, cmaes"
                )
            points = [
                point | ({axis.name: value} if axis.is_active(point) else {})
                for point in points
                for value in (axis.values if axis.is_active(point) else axis.values[:1])
            ]
        return points

    def corners(self) -> Iterator[dict[str, Value]]:
        """Yield points that together cover every choice and both ends of every range, to be checked before training."""
        ends = {axis.name: axis.values or (axis.distribution.low, axis.distribution.high) for axis in self.axes}
        for axis in self.axes:
            values = ends[axis.name]
            for value in values if isinstance(axis.distribution, CategoricalDistribution) else (values[0], values[-1]):
                fixed_values, point = self._activating_values(axis) | {axis.name: value}, {}
                for other in self.axes:
                    if other.is_active(point):
                        point[other.name] = fixed_values.get(other.name, ends[other.name][0])
                yield point
        if not self.axes:
            yield {}

    def _activating_values(self, axis: Axis) -> dict[str, Value]:
        """Return values of other keys that make an axis active."""
        activating_values: dict[str, Value] = {}
        for name, texts in axis.when.items():
            other = next(a for a in self.axes if a.name == name)
            values = (value for value in other.values or () if text_of(value) == texts[0])
            activating_values |= self._activating_values(other) | {name: next(values)}
        return activating_values

    def overrides(self, point: Mapping[str, Value]) -> list[str]:
        """Return the overrides of a job that trains at a point."""
        overrides = []
        for item in self.items:
            if isinstance(item, str):
                overrides.append(item)
            elif item.name in point:
                overrides += item.overrides(point[item.name])
        return overrides

    def convert(self, point: Mapping[str, Any]) -> dict[str, Value]:
        """Convert the values of a point, or of a part of one, that the user wrote.

        Raises:
            UserError: for a key or a value that the space does not have.
        """
        axes = {axis.name: axis for axis in self.axes}
        point = _join_pairs(point, self.axes)
        for key in point:
            if key not in axes:
                raise UserError(f"hydra.sweeper.enqueue: {key} is not in the search space{nearest(key, axes)}")
            for other, texts in axes[key].when.items():
                if other in point and text_of(point[other]) not in texts:
                    raise UserError(f"hydra.sweeper.enqueue: {key} is varied only if {other} is {' or '.join(texts)}")
        return {key: axes[key].convert(value) for key, value in point.items()}


def text_of(value: Any) -> str:
    """Format a value for an override."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def quote(value: Any) -> str:
    """Quote an element of a list, if Hydra would read it as something else."""
    is_plain = not isinstance(value, str) or re.fullmatch(r"[\w./:+-]+", value)
    return text_of(value) if is_plain else QuotedString(value, Quote.single).with_quotes()


def _join_pairs(point: Mapping[str, Any], axes: Sequence[Axis]) -> dict[str, Any]:
    """Replace keys whose values go together, in a point that the user wrote, by the axis that sets them."""
    joined_point = dict(point)
    for axis in axes:
        if axis.pairs and (given_names := [name for name in axis.names if name in joined_point]):
            if missing_names := [name for name in axis.names if name not in joined_point]:
                raise UserError(f"hydra.sweeper.enqueue: {given_names[0]} is paired with {missing_names[0]}: set both")
            joined_point[axis.name] = SEPARATOR.join(quote(joined_point.pop(name)) for name in axis.names)
    return joined_point
