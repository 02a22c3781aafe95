"""A sweep's trials on a terminal: a headline, a table that fits the width, the time left."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from leyden.console import escaped, escaped_text
from leyden.run.summary import STATE_COLORS, duration
from leyden.sweep.directory import Sweep
from leyden.sweep.settings import Objective
from leyden.sweep.space import SEPARATOR, text_of

STATES = {  # Optuna's states and leyden's names for them, the most informative first
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "queued",
    TrialState.FAIL: "failed",
}
GAP = 2  # spaces between two columns


@dataclass
class TrialTable:
    """A table of trials. The last columns are the keys of the point; if they do not fit, they become one column."""

    titles: Sequence[str]
    rows: Sequence[Sequence[Text]]
    num_keys: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw all columns, or the last ones as `key=value key=value`, truncated at the edge."""
        if not self.rows:
            return
        titles, rows = list(self.titles), [list(row) for row in self.rows]
        widths = [max(map(len, column)) + GAP for column in zip(map(escaped, titles), *rows, strict=True)]
        if sum(widths) - GAP > options.max_width and self.num_keys > 1:
            keys, point_width = titles[-self.num_keys :], options.max_width - sum(widths[: -self.num_keys])
            titles[-self.num_keys :] = ["point"]
            for row in rows:
                point = zip(keys, row[-self.num_keys :], strict=True)
                text = escaped_text(" ".join(f"{key}={value}" for key, value in point if value))
                text.truncate(max(point_width, 10), overflow="ellipsis")
                row[-self.num_keys :] = [text]
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
        for title in titles:
            table.add_column(escaped_text(title), no_wrap=True, overflow="ellipsis")
        for row in rows:
            table.add_row(*row)
        yield table


def headline(
    sweep: Sweep, trials: Sequence[FrozenTrial], total: int, best: Sequence[FrozenTrial], *, alive: bool = True
) -> Text:
    """Return a line with the progress of a sweep and its best value."""
    text = Text.assemble("sweep ", escaped_text(sweep.name, "bold"))
    text.append(f"  {sum(trial.state.is_finished() for trial in trials)} of {total} trials")
    for state in ("running", "interrupted", "pruned", "failed"):
        if count := sum(state_of(trial, alive=alive) == state for trial in trials):
            text.append(f"  {count} {state}", STATE_COLORS[state])
    if len(best) == 1:
        text.append(f"  best {', '.join(value_texts(best[0]))} (trial {best[0].number})")
    elif best:
        text.append(f"  {len(best)} Pareto-optimal")
    return text


def trials_table(
    trials: Sequence[FrozenTrial], objectives: Sequence[Objective], best: Sequence[FrozenTrial], *, alive: bool
) -> TrialTable:
    """Lay out all trials, the best first."""
    names, rows = short_names(trials), []
    for trial in rank_trials(trials, objectives, best):
        state = state_of(trial, alive=alive)
        rows.append(row_of(trial, objectives, names, Text(state, STATE_COLORS[state]), Text(duration(seconds(trial)))))
    return TrialTable(titles_of(objectives, names, "state", "took"), rows, len(names))


def state_of(trial: FrozenTrial, *, alive: bool = True) -> str:
    """Return leyden's name of a trial's state, which is also `finished` if its runs finished without an objective."""
    return "finished" if "unmeasured" in trial.user_attrs else state_name(trial.state, alive=alive)


def state_name(state: TrialState, *, alive: bool) -> str:
    """Return leyden's name of an Optuna state; if no process works on the sweep, a running trial is interrupted."""
    return "interrupted" if state == TrialState.RUNNING and not alive else STATES[state]


def rank_trials(
    trials: Sequence[FrozenTrial], objectives: Sequence[Objective], best: Sequence[FrozenTrial]
) -> list[FrozenTrial]:
    """Sort trials: the best, the others by their first objective, those without values, and finally the failed ones."""
    best_numbers, order = {trial.number for trial in best}, list(STATES)
    sign = -1 if objectives[0].direction == "maximize" else 1

    def key(trial: FrozenTrial) -> tuple:
        value = sign * trial.values[0] if trial.state == TrialState.COMPLETE else math.inf
        return order.index(trial.state), trial.number not in best_numbers, value, trial.number

    return sorted(trials, key=key)


def short_names(trials: Iterable[FrozenTrial]) -> dict[str, str]:
    """Map the keys that vary to their shortest unambiguous endings, in order of appearance."""
    params = list(dict.fromkeys(key for trial in trials for key in trial.params))
    keys = [key for names in params for key in names.split(SEPARATOR)]

    def is_unambiguous(end: str, key: str) -> bool:
        return not any(f".{other}".endswith(f".{end}") for other in keys if other != key)

    names = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        names[key] = next((end for end in endings if is_unambiguous(end, key)), key)
    return {param: SEPARATOR.join(names[key] for key in param.split(SEPARATOR)) for param in params}


def eta(trials: Sequence[FrozenTrial], total: int, start: datetime) -> float | None:
    """Estimate the seconds left, from the trials begun after `start` and the number of running trials."""
    recent_trials = [trial for trial in trials if trial.datetime_start and trial.datetime_start >= start]
    durations = [duration for duration in map(seconds, recent_trials) if duration]
    num_left = total - sum(trial.state.is_finished() for trial in trials)
    if not durations or num_left <= 0:
        return None
    mean, now = sum(durations) / len(durations), datetime.now()
    start_times = [
        trial.datetime_start for trial in recent_trials if trial.state == TrialState.RUNNING and trial.datetime_start
    ]
    elapsed = sum(min(mean, (now - time).total_seconds()) for time in start_times)
    return (num_left * mean - elapsed) / max(1, len(start_times))


def seconds(trial: FrozenTrial) -> float | None:
    """Return the seconds from a trial's first start to its end."""
    return trial.duration.total_seconds() if trial.duration else None


def reason(trial: FrozenTrial) -> str:
    """Return why a trial failed, in one line."""
    return " ".join(str(trial.user_attrs.get("reason", "")).split())


def number_text(value: Any) -> str:
    """Format a value; fractions get four digits."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else text_of(value)


def value_texts(trial: FrozenTrial) -> list[str]:
    """Format a trial's objectives, with the standard deviation over its jobs if it had several."""
    stds = trial.user_attrs.get("std") or [None] * len(trial.values)
    return [number_text(v) + (f" ± {s:.2g}" if s else "") for v, s in zip(trial.values, stds, strict=True)]


def titles_of(objectives: Sequence[Objective], names: Mapping[str, str], *facts: str) -> list[str]:
    """Return the titles of a table of trials: the number, the objectives, further facts, and the point."""
    return ["trial", *(objective.metric for objective in objectives), *facts, *names.values()]


def row_of(trial: FrozenTrial, objectives: Sequence[Objective], names: Mapping[str, str], *facts: Text) -> list[Text]:
    """Return the row of a trial; before it ends, its objective is the last value that it reported."""
    if trial.state == TrialState.COMPLETE:
        values = [Text(text) for text in value_texts(trial)]
    else:
        latest_value = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
        values = [Text(number_text(latest_value), "dim"), *[Text()] * (len(objectives) - 1)]
    point = [escaped_text(number_text(trial.params.get(key))) for key in names]
    return [Text(str(trial.number)), *values, *facts, *point]
