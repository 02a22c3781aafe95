"""`leyden cancel RUN|SWEEP…`: cancel the SLURM jobs of runs; those that train save a checkpoint and stop."""

from leyden.commands.arguments import Arguments
from leyden.console import put
from leyden.errors import UserError
from leyden.launch import slurm
from leyden.run.find import find_runs


def main(arguments: list[str]) -> int:
    """Cancel the jobs of runs."""
    parser = Arguments("cancel", "Cancel the SLURM jobs of runs; those that train save a checkpoint and stop.")
    parser.add_runs()
    runs = {job: run for run in find_runs(parser.parse_args(arguments).runs) if (job := slurm.job_of(run))}
    if not runs:
        raise UserError("these runs are not SLURM jobs: Ctrl-C in its own terminal stops a run")
    jobs = slurm.queue(runs.values())
    if jobs is None:
        raise UserError("SLURM does not answer here (squeue), so nothing was cancelled")
    active_jobs = [job for job in runs if not jobs.get(job, slurm.FORGOTTEN).is_over]
    if not active_jobs:
        print("none of their jobs is in the queue")
        return 0
    slurm.cancel(active_jobs)
    for job in active_jobs:
        put(f"{runs[job].name}: job {job} cancelled")
    return 0
