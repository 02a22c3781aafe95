"""Submit new runs to SLURM, and wait for runs to end, wherever they are trained."""

import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leyden.config.composition import Composition
from leyden.config.locations import relative_to_cwd
from leyden.console import complain, put
from leyden.distributed.signals import Interrupted
from leyden.errors import UserError
from leyden.launch import slurm, slurm_script
from leyden.run.directory import Run
from leyden.run.freeze import freeze
from leyden.run.summary import best_value

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two queries of the queue, growing to spare the scheduler
ACTIVE_STATES = ("queued", "starting", "running")
FINAL_STATES = ("finished", "pruned", "failed", "interrupted", "cancelled")


def submit_new(composition: Composition, parent: dict[str, Any] | None = None) -> int:
    """Make a run and submit it, and wait for its end if `hydra.launcher.wait` is set; return the exit code."""
    options = slurm_script.Options.from_config(composition.launcher)
    slurm.check(options, [composition.config])
    run = freeze(composition, Path(composition.run_dir) if composition.run_dir else None, parent)
    try:
        jobs = slurm.submit([run], run.path, options, slurm.copy_code(run.path, options))
    except UserError:
        run.discard()
        raise
    announce(jobs, run.path, 1)
    if options.wait:
        return 1 if isinstance(results([run])[run.path], Exception) else 0
    return 0


def announce(jobs: list[str], folder: Path, count: int) -> None:
    """Print which jobs were submitted, and the commands that wait for them and cancel them."""
    path = shlex.quote(str(relative_to_cwd(folder)))
    description = f"{count} runs in the queue" if count > 1 else "in the queue"
    put(f"{description} as job {', '.join(jobs)}: leyden wait {path}; leyden cancel {path}")


def results(runs: list[Run]) -> dict[Path, float | RuntimeError | None]:
    """Wait for runs to end; return each run's value for the sweeper (see `best_value`), or the error it ended with."""
    values: dict[Path, float | RuntimeError | None] = {}
    try:
        for run, state, reason in iterate_ends(runs):
            text = f"{run.name}: {state}" + (f": {reason}" if reason else "")
            put(text)
            values[run.path] = best_value(run) if state == "finished" else RuntimeError(text)
    except (KeyboardInterrupt, Interrupted):
        print("no longer waiting; the jobs stay in the queue", flush=True)
        raise
    return values


def iterate_ends(runs: list[Run]) -> Iterator[tuple[Run, str, str | None]]:
    """Yield each run when it ends, with its last state and the reason for it."""
    pause, active_runs, has_warned = FIRST_PAUSE, list(runs), False
    while True:
        jobs = slurm.queue(active_runs)  # read before the states: once its job is over, a run's state is final
        if jobs is None and not has_warned:
            complain("SLURM does not answer here (squeue), so leyden cannot tell if a waiting run will never start")
            has_warned = True
        for run in list(active_runs):
            state, reason = slurm.state_and_reason(run, jobs)
            if state in FINAL_STATES or not (state in ACTIVE_STATES or slurm.may_still_run(run, state, jobs)):
                active_runs.remove(run)
                yield run, state, reason
        if not active_runs:
            return
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, 1.2 * pause)
