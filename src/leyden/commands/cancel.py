"""`leyden cancel RUN|SWEEP…`: cancel the SLURM jobs of runs; a run in training saves a checkpoint first."""

from leyden.commands.arguments import Arguments
from leyden.console import put
from leyden.errors import UserError
from leyden.launch import slurm
from leyden.run.find import find_runs


def main(arguments: list[str]) -> int:
    """Cancel the jobs of the runs that are in SLURM's queue."""
    parser = Arguments("cancel", "Cancel the SLURM jobs of runs; a run in training saves a checkpoint first.")
    parser.add_runs()
    run_of_job = {job: run for run in find_runs(parser.parse_args(arguments).runs) if (job := slurm.job_of(run))}
    if not run_of_job:
        raise UserError("these runs are not SLURM jobs: Ctrl-C in its own terminal stops a run")
    jobs = slurm.queue(run_of_job.values())
    if jobs is None:
        raise UserError("SLURM does not answer here (squeue), so nothing was cancelled")
    active_jobs = [job for job in run_of_job if not jobs.get(job, slurm.FORGOTTEN).is_over]
    if not active_jobs:
        print("none of these runs has a job in the queue")
        return 0
    slurm.cancel(active_jobs)
    for job in active_jobs:
        put(f"{run_of_job[job].name}: job {job} cancelled")
    return 0
