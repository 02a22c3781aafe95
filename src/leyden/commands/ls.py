"""`leyden ls [NAME-PART]`: the runs, or the sweeps, the newest last; reads small files only."""

import json
import time
from typing import Any

from rich.table import Table
from rich.text import Text

from leyden import slurm
from leyden.commands.arguments import Arguments
from leyden.console import console, foreign, plain, put
from leyden.errors import UserError
from leyden.run import Run, list_runs, runs_root
from leyden.summary import (
    STATE_COLORS,
    duration,
    latest_metrics,
    monitored,
    seconds_worked,
    wide_console,
)


def main(arguments: list[str]) -> int:
    """List the runs whose name holds a text, or all."""
    parser = Arguments("ls", "List the runs, the newest last.")
    parser.add_argument("part", nargs="?", default="", metavar="NAME-PART", help="only runs with this in their name")
    parser.add_argument("--sweep", action="store_true", help="the sweeps instead")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)
    if options.sweep:
        from leyden.commands import ls_sweep  # with optuna, a third of a second

        return ls_sweep.main(options.part, options.json)
    runs = [run for run in list_runs() if options.part in run.name]
    if options.part and not runs:
        raise UserError(f"{options.part} is in the name of no run in {runs_root()}")
    jobs = slurm.queue(runs)
    rows = [describe(run, jobs) for run in runs]
    if options.json:
        for row in rows:
            print(json.dumps(row))
    elif rows:
        wide_console().print(table(rows))
    else:
        put(f"there are no runs in {runs_root()}; leyden train makes one, LEYDEN_RUNS moves it")
    return 0


def describe(run: Run, jobs: dict[str, slurm.Job] | None = None) -> dict[str, Any]:
    """Return what a row shows, as plain data; a directory that makes no sense is said to be `broken`."""
    try:
        status = run.status
        state, reason = slurm.seen(run, jobs)
        metrics = latest_metrics(run)
        name = monitored(metrics, run.manifest)
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
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        return {"name": run.name, "path": str(run.path), "state": "broken", "reason": reason}


def table(rows: list[dict[str, Any]]) -> Table:
    """Lay the rows out; a narrow terminal shows no times, so that names can be copied whole."""
    narrow = console.is_terminal and console.width < 110
    result = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    longest = max((len(plain(row["name"])) for row in rows), default=0)
    result.add_column("run", no_wrap=True, min_width=longest)
    result.add_column("state", no_wrap=True, min_width=8)
    for title in ("step",) if narrow else ("step", "seen", "took"):
        result.add_column(title, justify="right", no_wrap=True)
    result.add_column("result", no_wrap=True, overflow="ellipsis")
    for row in rows:
        state, step, beat = row["state"], row.get("step"), row.get("heartbeat")
        ago = f"{duration(time.time() - beat)} ago" if isinstance(beat, int | float) else ""
        result.add_row(
            foreign(row["name"]),
            foreign(state, STATE_COLORS.get(state, "")),
            f"{step:,}" if isinstance(step, int) else "",
            *(() if narrow else (ago, duration(row.get("seconds")))),
            _result(row),
        )
    return result


def _result(row: dict[str, Any]) -> Text:
    """The expectation's verdict, else the reason why the run ended, else the metric."""
    if row.get("expect"):
        held = all(verdict["held"] for verdict in row["expect"])
        texts = "; ".join(verdict["text"] for verdict in row["expect"])
        return foreign(f"{'as expected' if held else 'NOT AS EXPECTED'}: {texts}", "green" if held else "red")
    if row.get("reason"):
        return foreign(str(row["reason"]).splitlines()[0])
    return foreign(f"{row['metric']} {row['value']:.4g}" if row.get("metric") else "")
