"""`leyden wait RUN|SWEEP…`: stay until runs have ended, wherever they run, and say how."""

import time
from collections.abc import Iterator
from pathlib import Path

from leyden import slurm
from leyden.commands.arguments import Arguments
from leyden.console import complain, put
from leyden.errors import UserError
from leyden.run import Run, sweep_folder

FIRST, LONGEST = 0.5, 30.0  # seconds between two looks, growing: a scheduler is not to be asked often
BUSY = ("queued", "starting", "running")
SETTLED = ("finished", "pruned", "failed", "interrupted", "cancelled")


def main(arguments: list[str]) -> int:
    """Wait; the exit code is 0 when all have finished."""
    parser = Arguments("wait", "Wait until runs have ended; exit code 0 when all are finished.")
    parser.add_argument("runs", nargs="+", metavar="RUN|SWEEP", help="runs, or folders of multiruns")
    options = parser.parse_args(arguments)
    finished = True
    for run, state, reason in ends(chosen(options.runs)):
        put(f"{run.name}: {state}" + (f": {reason}" if reason else ""))
        finished = finished and state == "finished"
    return 0 if finished else 1


def chosen(names: list[str]) -> list[Run]:
    """Open each run by its name, and all of a multirun by its folder or its folder's name.

    Raises:
        UserError: where there is none.
    """
    found: dict[Path, Run] = {}
    for name in names:
        if folder := sweep_folder(name):
            jobs = [Run(path.parent) for path in sorted(folder.glob("*/config.yaml"))]
            if not jobs:
                raise UserError(f"{name}: this multirun has no runs")
        else:
            jobs = [Run.find(name)]
        found |= {run.path: run for run in jobs}
    return list(found.values())


def ends(runs: list[Run]) -> Iterator[tuple[Run, str, str | None]]:
    """Yield each run, its last state and the reason for it, as they end."""
    pause, left, told = FIRST, list(runs), False
    while True:
        jobs = slurm.queue(left)  # before the states: a job that is over writes no more
        if jobs is None and not told:
            complain("SLURM does not answer here (squeue), so what is not running may be waited for in vain")
            told = True
        for run in list(left):
            state, reason = slurm.seen(run, jobs)
            if state in SETTLED or not (state in BUSY or slurm.may_go_on(run, state, jobs)):
                left.remove(run)
                yield run, state, reason
        if not left:
            return
        time.sleep(pause)
        pause = min(LONGEST, 1.2 * pause)
