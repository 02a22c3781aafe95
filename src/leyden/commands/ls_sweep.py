"""`leyden ls --sweep`: the sweeps, the newest last."""

import json
from typing import Any

from rich.table import Table
from rich.text import Text

from leyden.console import escaped, escaped_text, put
from leyden.errors import UserError
from leyden.run.directory import runs_root
from leyden.run.summary import STATE_COLORS, wide_console
from leyden.sweep.directory import Sweep, list_sweeps
from leyden.sweep.table import number_text, short_names, state_of


def main(part: str, as_json: bool) -> int:
    """List the sweeps whose name holds a text, or all."""
    rows = [describe(sweep) for sweep in list_sweeps() if part in sweep.name]
    if part and not rows:
        raise UserError(f"{part} is in the name of no sweep in {runs_root()}")
    if as_json:
        for row in rows:
            print(json.dumps(row))
    elif rows:
        wide_console().print(_table(rows))
    else:
        put(f"there are no sweeps in {runs_root()}; leyden train -m KEY=VALUE,VALUE makes one")
    return 0


def describe(sweep: Sweep) -> dict[str, Any]:
    """Return what a row shows, as plain data; of another sweeper's, that is the number of runs."""
    num_runs = len(list(sweep.path.glob("*/config.yaml")))
    row: dict[str, Any] = {"name": sweep.name, "path": str(sweep.path), "runs": num_runs}
    try:
        if not sweep.is_own:
            return row
        trials, best, total = sweep.study.get_trials(deepcopy=False), sweep.best(), sweep.total
    except UserError as error:
        return row | {"state": "broken", "reason": str(error)}
    alive = sweep.is_alive
    ended = sum(trial.state.is_finished() for trial in trials)
    states = [state_of(trial, alive=alive) for trial in trials]
    names = short_names(trials)
    return row | {
        "state": "running" if alive else "finished" if ended >= total else "interrupted",
        "trials": ended,
        "total": total,
        "pruned": states.count("pruned"),
        "failed": states.count("failed"),
        "best": [
            {
                "trial": trial.number,
                "values": {o.metric: value for o, value in zip(sweep.objectives, trial.values, strict=True)},
                "point": {names[key]: value for key, value in trial.params.items()},
            }
            for trial in best
        ],
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("sweep", no_wrap=True, min_width=max(len(escaped(row["name"])) for row in rows))
    table.add_column("state", no_wrap=True, min_width=8)
    for title in ("trials", "pruned", "failed"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("best", no_wrap=True, overflow="ellipsis")
    for row in rows:
        state = row.get("state", "")
        count = f"{row['trials']} of {row['total']}" if "trials" in row else f"{row['runs']} runs"
        numbers = [str(row[key]) if row.get(key) else "" for key in ("pruned", "failed")]
        state_text = escaped_text(state, STATE_COLORS.get(state, ""))
        table.add_row(escaped_text(row["name"]), state_text, count, *numbers, _best(row))
    return table


def _best(row: dict[str, Any]) -> Text:
    """The best trial's objectives and point, the number of Pareto-optimal trials, or what is wrong."""
    best = row.get("best") or []
    if len(best) > 1:
        return Text(f"{len(best)} Pareto-optimal")
    if not best:
        return escaped_text(row.get("reason", ""))
    values = " ".join(f"{metric} {number_text(value)}" for metric, value in best[0]["values"].items())
    point = " ".join(f"{key}={number_text(value)}" for key, value in best[0]["point"].items())
    return escaped_text(f"{values}  {point}")
