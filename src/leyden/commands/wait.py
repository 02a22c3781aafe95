"""`leyden wait RUN|SWEEP…`: stay until runs have ended, wherever they run, and say how."""

import time
from collections.abc import Iterator
from pathlib import Path

from leyden import slurm
from leyden.commands.arguments import Arguments
from leyden.console import complain
from leyden.errors import UserError
from leyden.run import Run, list_runs

FIRST, LONGEST = 0.5, 30.0  # seconds between two looks, growing: a scheduler is not to be asked often
BUSY = ("queued", "starting", "running")
SETTLED = ("finished", "failed", "interrupted", "cancelled")
START = 60.0  # seconds that the ranks of a run may take to begin


def main(arguments: list[str]) -> int:
    """Wait; the exit code is 0 when all have finished."""
    parser = Arguments("wait", "Wait until runs have ended; exit code 0 when all are finished.")
    parser.add_argument("runs", nargs="+", metavar="RUN|SWEEP", help="runs, or folders of multiruns")
    options = parser.parse_args(arguments)
    finished = True
    for run, state, reason in ends(chosen(options.runs)):
        print(f"{run.name}: {state}" + (f": {reason}" if reason else ""), flush=True)
        finished = finished and state == "finished"
    return 0 if finished else 1


def chosen(names: list[str]) -> list[Run]:
    """Open each run by its name, and all of a multirun by its folder or its folder's name.

    Raises:
        UserError: where there is none.
    """
    every = list_runs()
    found: dict[Path, Run] = {}
    for name in names:
        folder = Path(name).resolve()
        if (folder / "multirun.yaml").is_file():
            jobs = [Run(path.parent) for path in sorted(folder.glob("*/config.yaml"))]
            if not jobs:
                raise UserError(f"{name}: this multirun has no runs")
        else:
            jobs = [run for run in every if run.sweep and name.rstrip("/") == run.sweep] or [Run.find(name)]
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
            if state in SETTLED or not (state in BUSY or _may_go_on(run, state, jobs)):
                left.remove(run)
                yield run, state, reason
        if not left:
            return
        time.sleep(pause)
        pause = min(LONGEST, 1.2 * pause)


def _may_go_on(run: Run, state: str, jobs: dict[str, slurm.Job] | None) -> bool:
    """Whether SLURM still holds the run's job, or does not say; without a job, whether the run was made just now."""
    job = slurm.job_of(run)
    if job is None:
        return state == "created" and time.time() - run.status["heartbeat"] < START
    return jobs is None or not jobs.get(job, slurm.GONE).is_over
