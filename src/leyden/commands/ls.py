"""`leyden ls [NAME-PART] [--tag TAG]`: list the runs or the sweeps, the newest last; only small files are read."""

import json
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from leyden.commands.arguments import Arguments
from leyden.config.locations import relative_to_cwd
from leyden.console import console, escaped_text, put
from leyden.errors import UserError
from leyden.launch import slurm
from leyden.run.directory import Run, runs_root
from leyden.run.find import list_runs, name_part
from leyden.run.summary import DAMAGE, STATE_COLORS, duration, latest_metrics, main_metric, seconds_worked, wide_console

if TYPE_CHECKING:
    from leyden.sweep.directory import Sweep

MIN_WIDTH = 110  # columns; a narrower terminal shows no times, so that names can be copied whole
MAX_RESULT = 80  # characters of the last column in a pipe or a file; a terminal cuts lines at its own width


def main(arguments: list[str]) -> int:
    """List the runs whose names contain a text, or all runs."""
    parser = Arguments("ls", "List the runs, the newest last.")
    parser.add_argument("part", nargs="?", default="", metavar="NAME-PART", help="only runs with this in their name")
    parser.add_argument("--sweep", action="store_true", help="the sweeps instead")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="only runs with this tag; repeatable")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args(arguments)
    if options.sweep and options.tag:
        raise UserError("--tag filters runs; a sweep has no tags of its own")
    part = name_part(options.part)
    if options.sweep:
        from leyden.sweep.directory import list_sweeps  # loads optuna, which takes a third of a second

        rows = [describe_sweep(sweep) for sweep in list_sweeps() if part in sweep.name]
        kind, command = "sweep", "leyden train -m KEY=VALUE,VALUE makes one"
    else:
        runs = [run for run in list_runs() if part in run.name]
        jobs = slurm.queue(runs)
        rows = [describe(run, jobs) for run in runs]
        rows = [row for row in rows if {*options.tag} <= {*row.get("tags", ())}]
        kind, command = "run", "leyden train makes one, LEYDEN_RUNS moves it"
    if not rows and (options.part or options.tag):
        filters = [f"{options.part} in its name"] if options.part else []
        filters += [f"the tag {tag}" for tag in options.tag]
        raise UserError(f"no {kind} in {relative_to_cwd(runs_root())} has {' and '.join(filters)}")
    if rows or options.json:
        print_rows(rows, options.json)
    else:
        put(f"there are no {kind}s in {relative_to_cwd(runs_root())}; {command}")
    return 0


def describe(run: Run, jobs: dict[str, slurm.Job] | None = None) -> dict[str, Any]:
    """Return the row of a run as plain data; its state is `broken` if the directory cannot be read."""
    try:
        status = run.status
        has_ended = status.get("state") in ("finished", "pruned", "failed", "interrupted")  # SLURM has nothing to add
        state, reason = (status["state"], status.get("reason")) if has_ended else slurm.state_and_reason(run, jobs)
        metrics = latest_metrics(run, status)
        monitor = (status.get("checkpoint") or {}).get("metric")  # avoids reading the manifest of every run
        name = main_metric(metrics, {"monitor": monitor} if monitor else run.manifest)
        return {
            "name": run.name,
            "path": str(run.path),
            "state": state,
            "step": status.get("step"),
            "heartbeat": status.get("heartbeat"),
            "seconds": seconds_worked(status),
            "metric": name,
            "value": metrics[name] if name else None,
            "expect": [{"text": str(v["text"]), "held": bool(v["held"])} for v in status.get("expect") or []],
            "reason": reason,
            "tags": status.get("tags", []),
            "fast_dev_run": bool(status.get("fast_dev_run")),
        }
    except DAMAGE as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return {"name": run.name, "path": str(run.path), "state": "broken", "reason": reason}


def describe_sweep(sweep: "Sweep") -> dict[str, Any]:
    """Return the row of a sweep as plain data; if another sweeper made it, the row holds only the number of runs."""
    from leyden.sweep.table import short_names, state_of

    num_runs = len(list(sweep.path.glob("*/config.yaml")))
    row: dict[str, Any] = {"name": sweep.name, "path": str(sweep.path), "runs": num_runs}
    try:
        if not sweep.uses_leyden_sweeper:
            return row
        trials, best, total = sweep.study.get_trials(deepcopy=False), sweep.best_trials(), sweep.total
    except UserError as error:
        return row | {"state": "broken", "reason": str(error)}
    alive = sweep.is_alive
    num_ended = sum(trial.state.is_finished() for trial in trials)
    states = [state_of(trial, alive=alive) for trial in trials]
    names = short_names(trials)
    return row | {
        "state": "running" if alive else "finished" if num_ended >= total else "interrupted",
        "trials": num_ended,
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


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print the descriptions of runs or sweeps as a table, or as one JSON object per line."""
    for row in rows if as_json else ():
        print(json.dumps(row))
    if rows and not as_json:
        wide_console().print(_table_of_sweeps(rows) if "runs" in rows[0] else _table_of_runs(rows))


def _table_of_runs(rows: list[dict[str, Any]]) -> Group:
    is_narrow = console.is_terminal and console.width < MIN_WIDTH
    has_tags = any(row.get("tags") for row in rows)
    now, cells = time.time(), []
    for row in rows:
        state, step, heartbeat = row["state"], row.get("step"), row.get("heartbeat")
        last_seen = f"{duration(now - heartbeat)} ago" if isinstance(heartbeat, int | float) else ""
        times = () if is_narrow else (Text(last_seen), Text(duration(row.get("seconds"))))
        steps = Text(f"{step:,}" if isinstance(step, int) else "")
        tags = [escaped_text(" ".join(row.get("tags", ())))] if has_tags else []
        cells.append([escaped_text(row["name"]), _state_text(state), steps, *times, *tags, _result_text(row)])
    titles = [*(() if is_narrow else ("seen", "took")), *(["tags"] if has_tags else []), "result"]
    return _align_columns(["run", "state", "step", *titles], cells)


def _result_text(row: dict[str, Any]) -> Text:
    """Return the verdict on the run's expectations if there is one, else the reason of its end, else its metric."""
    mark = "fast_dev_run: " if row.get("fast_dev_run") else ""
    if row.get("expect") and not mark:
        is_met = all(verdict["held"] for verdict in row["expect"])
        expectations = "; ".join(verdict["text"] for verdict in row["expect"])
        verdict, color = ("as expected", "green") if is_met else ("NOT AS EXPECTED", "red")
        return escaped_text(f"{verdict}: {expectations}", color)
    if row.get("reason"):
        return escaped_text(mark).append_text(_reason(row))
    return escaped_text(mark + (f"{row['metric']} {row['value']:.4g}" if row.get("metric") else ""))


def _reason(row: dict[str, Any]) -> Text:
    """Return the first line of the reason, without the path of the folder that the row names."""
    first_line = str(row.get("reason") or "").partition("\n")[0]
    return escaped_text(first_line.replace(f"{row['path']}/", ""))


def _table_of_sweeps(rows: list[dict[str, Any]]) -> Group:
    cells = []
    for row in rows:
        count = f"{row['trials']} of {row['total']}" if "trials" in row else f"{row['runs']} runs"
        numbers = [Text(str(row.get(key) or "")) for key in ("pruned", "failed")]
        state = _state_text(row.get("state", ""))
        cells.append([escaped_text(row["name"]), state, Text(count), *numbers, _best_text(row)])
    return _align_columns(["sweep", "state", "trials", "pruned", "failed", "best"], cells)


def _best_text(row: dict[str, Any]) -> Text:
    """Return the objectives and point of the best trial, the number of Pareto-optimal trials, or why there is none."""
    from leyden.sweep.table import number_text

    best = row.get("best") or []
    if len(best) > 1:
        return Text(f"{len(best)} Pareto-optimal")
    if not best:
        return _reason(row)
    values = " ".join(f"{metric} {number_text(value)}" for metric, value in best[0]["values"].items())
    point = " ".join(f"{key}={number_text(value)}" for key, value in best[0]["point"].items())
    return escaped_text(f"{values}  {point}")


def _state_text(state: str) -> Text:
    return escaped_text(state, STATE_COLORS.get(state, ""))


def _align_columns(titles: Sequence[str], rows: Iterable[Sequence[Text]]) -> Group:
    """Align the columns: two columns of names, columns of numbers, and a last column that may be truncated.

    A rich.table.Table takes a second for a thousand rows, this a fifth of that.
    """
    rows = [[Text(title, "dim") for title in titles], *rows]
    widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)][:-1]
    for row in rows:
        for index, (cell, width) in enumerate(zip(row, widths, strict=False)):
            cell.align("left" if index < 2 else "right", width)
        if not console.is_terminal:
            row[-1].truncate(MAX_RESULT, overflow="ellipsis")
    return Group(*(Text("  ", no_wrap=True, overflow="ellipsis").join(row) for row in rows))
