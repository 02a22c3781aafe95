"""`leyden wait RUN|SWEEP…`: stay until runs have ended, wherever they run, and say how."""

import time
from collections.abc import Iterator

from leyden.commands.arguments import Arguments
from leyden.console import complain, put
from leyden.launch import slurm
from leyden.run.directory import Run
from leyden.run.find import find_runs

FIRST, LONGEST = 0.5, 30.0  # seconds between two looks, growing: a scheduler is not to be asked often
BUSY = ("queued", "starting", "running")
SETTLED = ("finished", "pruned", "failed", "interrupted", "cancelled")


def main(arguments: list[str]) -> int:
    """Wait; the exit code is 0 when all have finished."""
    parser = Arguments("wait", "Wait until runs have ended; exit code 0 when all are finished.")
    parser.add_argument("runs", nargs="+", metavar="RUN|SWEEP", help="runs, or folders of multiruns")
    options = parser.parse_args(arguments)
    finished = True
    for run, state, reason in ends(find_runs(options.runs)):
        put(f"{run.name}: {state}" + (f": {reason}" if reason else ""))
        finished = finished and state == "finished"
    return 0 if finished else 1


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
