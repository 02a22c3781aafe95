"""Read the search space of a sweep from Hydra's override grammar: choice, range, interval, tag(log, …), and pairs."""

import math
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from leyden.errors import UserError, nearest
from leyden.sweep.space import SEPARATOR, Axis, Space, quote, text_of


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
        if repeated_name := next((name for name in axis.names if name in names), None):
            raise UserError(f"pairs: {repeated_name} is set elsewhere too: leave one of them out")
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
    rows = [tuple(map(quote, row)) for row in zip(*node.values(), strict=True)]
    choices = [SEPARATOR.join(row) for row in rows]
    if duplicate := next((choice for choice in choices if choices.count(choice) > 1), None):
        raise UserError(f"pairs: {duplicate} is listed twice")
    distribution = CategoricalDistribution(choices)
    return Axis(SEPARATOR.join(node), distribution, tuple(choices), pairs=dict(zip(choices, rows, strict=True)))


def _values_text(key: str, node: Any) -> str:
    if isinstance(node, Mapping):
        if node.keys() != {"when", "values"}:
            raise UserError(
                f"hydra.sweeper.params.{key} takes text, or when and values: {{when: key=value, values: …}}"
            )
        node = node["values"]
    if isinstance(node, Sequence) and not isinstance(node, str):
        return ",".join(map(quote, node)) if len(node) > 1 else f"choice({','.join(map(quote, node))})"
    return text_of(node)


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
