"""`leyden ls [NAME-PART]`: the runs, or the sweeps, the newest last; reads small files only."""

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions
from rich.segment import Segment

from leyden.commands.arguments import Arguments
from leyden.console import console, escaped, put
from leyden.errors import UserError
from leyden.launch import slurm
from leyden.run.directory import Run, runs_root
from leyden.run.find import list_runs
from leyden.run.summary import STATE_COLORS, duration, latest_metrics, monitored, seconds_worked, wide_console

GAP = 2  # blanks between two columns


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
    runs = [run for run in list_runs() if not options.part or options.part in run.name]
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
        ended = status.get("state") in ("finished", "pruned", "failed", "interrupted")  # SLURM knows nothing more
        state, reason = (status["state"], status.get("reason")) if ended else slurm.state_and_reason(run, jobs)
        metrics = latest_metrics(run, status)
        monitor = (status.get("checkpoint") or {}).get("metric")  # one file less to read for each of many runs
        name = monitored(metrics, {"monitor": monitor} if monitor else run.manifest)
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


class Cell(NamedTuple):
    """What stands in a table, on one line, and its style."""

    text: str
    style: str = ""


class Rows:
    """A table of thousands of rows, whose cells are each one line; rich's own takes a second for each thousand."""

    def __init__(self, titles: list[str], rows: list[list[Cell]], right: set[int]) -> None:
        self.rows = [[Cell(title, "dim") for title in titles], *rows]
        self.widths = [max(len(cell.text) for cell in column) for column in zip(*self.rows, strict=True)]
        self.right = right  # columns that are aligned there

    def __rich_console__(self, terminal: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Draw each row in a line, cut at the edge of the terminal."""
        styles = {name: terminal.get_style(name) for name in {cell.style for row in self.rows for cell in row}}
        for row in self.rows:
            room = options.max_width
            for text, style in self._pieces(row):
                cut = text if len(text) <= room else f"{text[: max(room - 1, 0)]}…"[:room]
                yield Segment(cut, styles[style])
                room = max(room - len(text), 0)
            yield Segment.line()

    def _pieces(self, row: list[Cell]) -> Iterator[tuple[str, str]]:
        """Pad the cells of a row, and join neighbours of one style."""
        padded = [
            cell.text.rjust(width) + " " * GAP if place in self.right else cell.text.ljust(width + GAP)
            for place, (cell, width) in enumerate(zip(row, self.widths, strict=True))
        ]
        padded[-1] = padded[-1].rstrip(" ")
        for style, group in itertools.groupby(range(len(row)), lambda place: row[place].style):
            yield "".join(padded[place] for place in group), style


def table(rows: list[dict[str, Any]]) -> Rows:
    """Lay the rows out; a narrow terminal shows no times, so that names can be copied whole."""
    narrow = console.is_terminal and console.width < 110
    now, cells = time.time(), []
    for row in rows:
        state, step, beat = row["state"], row.get("step"), row.get("heartbeat")
        ago = f"{duration(now - beat)} ago" if isinstance(beat, int | float) else ""
        times = () if narrow else (Cell(ago), Cell(duration(row.get("seconds"))))
        steps = Cell(f"{step:,}" if isinstance(step, int) else "")
        name_cell, state_cell = Cell(escaped(row["name"])), Cell(escaped(state), STATE_COLORS.get(state, ""))
        cells.append([name_cell, state_cell, steps, *times, _result(row)])
    titles = ["run", "state", "step", *(() if narrow else ("seen", "took")), "result"]
    return Rows(titles, cells, right=set(range(2, len(titles) - 1)))


def _result(row: dict[str, Any]) -> Cell:
    """The expectation's verdict, else the reason why the run ended, else the metric."""
    if row.get("expect"):
        is_met = all(verdict["held"] for verdict in row["expect"])
        texts = "; ".join(verdict["text"] for verdict in row["expect"])
        return Cell(escaped(f"{'as expected' if is_met else 'NOT AS EXPECTED'}: {texts}"), "green" if is_met else "red")
    if row.get("reason"):
        return Cell(escaped(str(row["reason"]).splitlines()[0]))
    return Cell(escaped(f"{row['metric']} {row['value']:.4g}") if row.get("metric") else "")
