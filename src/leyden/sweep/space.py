"""The search space of a sweep, read from Hydra's override grammar: choice, range, interval, tag(log, …)."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException
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
        """Return a point as the overrides of a job."""
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


def read(
    params: Mapping[str, Any],
    arguments: Sequence[str],
    loader: ConfigLoader | None = None,
    pairs: Sequence[Mapping[str, Any]] = (),
) -> Space:
    """Read the space from `hydra.sweeper.params` and the command line, which takes precedence.

    Each of `pairs` maps keys to lists of equal length; the n-th values of these keys go together.

    Raises:
        UserError: for invalid syntax, an unknown tag, an empty range, a condition on a key that does not vary, or
            pairs whose lists do not fit together.
    """
    conditions = {key: node["when"] for key, node in params.items() if isinstance(node, Mapping) and "when" in node}
    texts = [f"{key}={_values_text(key, node)}" for key, node in params.items()]
    try:
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*texts, *arguments])
    except HydraException as error:
        raise UserError(" ".join(str(error).split("\nSee ")[0].split())) from error
    # a dict keeps a key's first position and its latest value
    latest_overrides = {item.get_key_element().lstrip("+"): item for item in overrides}
    items: list[Axis | str] = []
    inactive_keys: set[str] = set()  # keys whose condition is never met
    for key, item in latest_overrides.items():
        override_text = item.input_line or f"{item.get_key_element()}={item.get_value_element_as_str()}"
        if item.is_sweep_override():
            when = _parse_condition(key, conditions.get(key), items, inactive_keys)
            if when is None:
                inactive_keys.add(key)
            else:
                items.append(_build_axis(item, when))
        elif key in conditions and override_text not in arguments:
            raise UserError(f"hydra.sweeper.params.{key}: `when` belongs to a key with several values")
        else:
            items.append(override_text)
    names = {name for item in items for name in (item.names if isinstance(item, Axis) else [_key_of(item)])}
    for node in pairs:
        axis = _build_pairs(node)
        if twice := next((name for name in axis.names if name in names), None):
            raise UserError(f"pairs: {twice} is set elsewhere too: leave one of them out")
        names |= set(axis.names)
        items.append(axis)
    return Space(tuple(items))


def _key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _build_pairs(node: Mapping[str, Any]) -> Axis:
    """Build the axis of keys whose values go together."""
    example = "pairs='{model.net.width:[4,8],optimizer.lr:[1e-2,1e-3]}'"
    if len(node) < 2 or not all(isinstance(v, Sequence) and not isinstance(v, str) for v in node.values()):
        raise UserError(f"pairs takes two or more keys, each with a list of values: {example}")
    lengths = {key: len(values) for key, values in node.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        counts = ", ".join(f"{key} has {count}" for key, count in lengths.items())
        raise UserError(f"pairs: the keys need equally many values, and {counts}")
    rows = [tuple(map(_quote, row)) for row in zip(*node.values(), strict=True)]
    choices = [SEPARATOR.join(row) for row in rows]
    if duplicate := next((choice for choice in choices if choices.count(choice) > 1), None):
        raise UserError(f"pairs: {duplicate} is listed twice")
    distribution = CategoricalDistribution(choices)
    return Axis(SEPARATOR.join(node), distribution, tuple(choices), pairs=dict(zip(choices, rows, strict=True)))


def _join_pairs(point: Mapping[str, Any], axes: Sequence[Axis]) -> dict[str, Any]:
    """Replace the keys of pairs in a point that the user wrote by the axis that sets them."""
    joined_point = dict(point)
    for axis in axes:
        if axis.pairs and (given_names := [name for name in axis.names if name in joined_point]):
            if missing_names := [name for name in axis.names if name not in joined_point]:
                raise UserError(f"hydra.sweeper.enqueue: {given_names[0]} is paired with {missing_names[0]}: set both")
            joined_point[axis.name] = SEPARATOR.join(_quote(joined_point.pop(name)) for name in axis.names)
    return joined_point


def _values_text(key: str, node: Any) -> str:
    if isinstance(node, Mapping):
        if node.keys() != {"when", "values"}:
            raise UserError(
                f"hydra.sweeper.params.{key} takes text, or when and values: {{when: key=value, values: …}}"
            )
        node = node["values"]
    if isinstance(node, Sequence) and not isinstance(node, str):
        return ",".join(map(_quote, node)) if len(node) > 1 else f"choice({','.join(map(_quote, node))})"
    return text_of(node)


def _quote(value: Any) -> str:
    """Quote an element of a list, if Hydra would read it as something else."""
    is_plain = not isinstance(value, str) or re.fullmatch(r"[\w./:+-]+", value)
    return text_of(value) if is_plain else QuotedString(value, Quote.single).with_quotes()


def _parse_condition(
    key: str, when: Any, earlier_items: Sequence[Axis | str], inactive_keys: Collection[str]
) -> dict[str, tuple[str, ...]] | None:
    """Parse the condition `optimizer=adamw,sgd`, or a list of them; return None if it is never met."""
    axes = {item.name: item for item in earlier_items if isinstance(item, Axis)}
    fixed_overrides = [item.lstrip("+") for item in earlier_items if isinstance(item, str) and "=" in item]
    fixed_values = dict(text.split("=", 1) for text in fixed_overrides)
    conditions = {}
    for text in [when] if isinstance(when, str) else when or []:
        other, _, values = str(text).partition("=")
        if other in inactive_keys:
            return None
        if other in fixed_values:
            if fixed_values[other] not in [value.strip() for value in values.split(",")]:
                return None
            continue
        if other not in axes:
            raise UserError(
                f"hydra.sweeper.params.{key}: when: {text}: {other} is not varied before it{nearest(other, axes)}"
            )
        conditions[other] = tuple(value.strip() for value in values.split(","))
        for value in conditions[other]:
            if value not in map(text_of, axes[other].values or ()):
                texts = ", ".join(map(text_of, axes[other].values or ()))
                raise UserError(
                    f"hydra.sweeper.params.{key}: when: {text}: {other} has {texts or 'an interval: write a choice'}"
                )
    return conditions


def _build_axis(item: Override, when: dict[str, tuple[str, ...]]) -> Axis:
    key, sweep = item.get_key_element(), item.value()
    name = key.lstrip("+")
    tags = getattr(sweep, "tags", set())
    if unknown_tags := sorted(tags - {"log"}):
        raise UserError(
            f"{name}: there is no tag {unknown_tags[0]}; the only one is log, as in tag(log,interval(1e-4,1))"
        )
    if getattr(sweep, "shuffle", False):
        raise UserError(f"{name}: shuffle has no effect here; hydra.sweeper.sampler=random draws points at random")
    log = "log" in tags
    if isinstance(sweep, IntervalSweep):
        return Axis(key, _interval_distribution(name, sweep.start, sweep.end, log), None, when)
    if isinstance(sweep, RangeSweep):
        values = _range_values(sweep)
        if not values:
            raise UserError(f"{name}: range({sweep.start},{sweep.stop},{sweep.step}) is empty")
        low, high, step = min(values), max(values), abs(sweep.step)
        if log and (low <= 0 or step != 1 or not isinstance(low, int)):
            raise UserError(
                f"{name}: tag(log,…) takes an interval, or a range of whole numbers from 1 on in steps of 1"
            )
        kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
        return Axis(key, kind(low, high, step=step, **({"log": True} if log else {})), values, when)
    pairs = zip(item.sweep_iterator(), item.sweep_string_iterator(), strict=True)
    values = tuple(value if isinstance(value, bool | int | float) else str(text) for value, text in pairs)
    if len(set(values)) < len(values):  # in Python, 1 equals True and 1.0
        values = tuple(str(text) for text in item.sweep_string_iterator())
    if not values:
        raise UserError(f"{name}: there is nothing to choose from")
    if log:
        raise UserError(f"{name}: tag(log,…) takes an interval or a range, not a choice")
    texts = list(map(text_of, values))
    if duplicate := next((text for text in texts if texts.count(text) > 1), None):
        raise UserError(f"{name}: {duplicate} is listed twice")
    return Axis(key, CategoricalDistribution(values), values, when)


def _range_values(sweep: RangeSweep) -> tuple[int | float, ...]:
    """List the numbers; fractions are computed as decimals, so that 0.5 + 0.2 is 0.7."""
    start, stop, step = (Decimal(str(number)) for number in (sweep.start, sweep.stop, sweep.step))
    if not step:
        raise UserError(f"range({sweep.start},{sweep.stop},{sweep.step}): the step must not be 0")
    count = max(0, math.ceil((stop - start) / step))
    kind = int if all(isinstance(number, int) for number in (sweep.start, sweep.step)) else float
    return tuple(kind(start + index * step) for index in range(count))


def _interval_distribution(name: str, start: float, end: float, log: bool) -> BaseDistribution:
    if not start < end:
        reason = "is empty" if start == end else f"ends below its start: write interval({end},{start})"
        raise UserError(f"{name}: interval({start},{end}) {reason}")
    if log and start <= 0:
        raise UserError(f"{name}: tag(log,interval({start},{end})) needs a start above 0")
    if isinstance(start, int) and isinstance(end, int):  # the user wrote int(interval(…))
        return IntDistribution(start, end, log=log)
    return FloatDistribution(start, end, log=log)
