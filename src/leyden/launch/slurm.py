"""Runs as SLURM jobs: submitting them, asking the queue for their states, and requeueing the job of this process.

A job's script (see `slurm_script`) resumes the run in its directory, so nothing more is needed when SLURM starts the
job again.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from leyden.config.composition import Composition
from leyden.config.locations import project_root
from leyden.config.run_config import RunConfig
from leyden.console import say
from leyden.errors import UserError
from leyden.files import unused_path, write_atomically
from leyden.files.formats import SUBMISSION
from leyden.launch.slurm_script import Options, group_by_shape, job_script
from leyden.run import project_code
from leyden.run.directory import Run, new_run_id, runs_root

LAUNCHER = "hydra_plugins.leyden_slurm.SlurmLauncher"
COMMAND_TIMEOUT = 30  # seconds for SLURM's commands to answer
START_TIMEOUT = 60.0  # seconds for the ranks of a run to begin
QUEUE_TIMEOUT = 5  # seconds for squeue to answer; otherwise runs are listed without the states of their jobs
FINAL_STATES = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}


class Job(NamedTuple):
    """The state of a job in the queue, such as PENDING or RUNNING, and the reason why it waits or has ended."""

    state: str
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether SLURM will no longer start or run the job."""
        return self.state in FINAL_STATES


OPEN_STATES = ("created", "preempted", "running", "killed")  # states of a run that its job may change
FORGOTTEN = Job("COMPLETED", "forgotten")  # SLURM forgets a job some minutes after its end


# Submitting


def is_requested(composition: Composition) -> bool:
    """Return whether the config asks for SLURM's queue."""
    return composition.launcher.get("_target_") == LAUNCHER


def check(options: Options, configs: Sequence[RunConfig]) -> None:
    """Ask SLURM whether it would accept runs with these configs, before anything is made.

    Raises:
        UserError: if it would not; the message quotes SLURM's reason.
    """
    if not shutil.which("sbatch"):
        raise UserError("there is no sbatch here: hydra/launcher=slurm submits from a machine of a SLURM cluster")
    for shape, indices in group_by_shape(configs).items():
        _run("sbatch", "--test-only", script=job_script(options, shape, [Path("run") for _ in indices], Path.cwd(), []))


def submit(runs: list[Run], folder: Path, options: Options, code: list[Path]) -> list[str]:
    """Put runs into the queue, as one job, or as a job array for each shape; return the job ids.

    The scripts and the jobs' output go to `folder`; `code` goes on the module search path.

    Raises:
        UserError: if SLURM does not accept a job.
    """
    jobs = []
    for shape, indices in group_by_shape([run.config for run in runs]).items():
        path = unused_path(folder / "job.sh")
        write_atomically(path, job_script(options, shape, [runs[i].path for i in indices], folder, code))
        statuses = {i: runs[i].status for i in indices}
        for i in indices:  # written before sbatch is called, because the job may begin at once
            runs[i].set_status("created", reason=None, exit_code=None)
        try:
            job = _run("sbatch", "--parsable", str(path)).strip().partition(";")[0]
        except UserError:
            for i, status in statuses.items():
                facts = {key: status.get(key) for key in ("reason", "exit_code")}
                runs[i].set_status(status.get("state", "created"), **facts)
            raise
        for task, i in enumerate(indices):
            facts = {"job": f"{job}_{task}" if len(indices) > 1 else job, "script": str(path)}
            submitted = datetime.now().astimezone().isoformat(timespec="seconds")
            facts |= {"submitted": submitted, "options": options.model_dump()}
            write_atomically(runs[i].path / "slurm.json", json.dumps(SUBMISSION.stamp(facts), indent=2) + "\n")
        jobs.append(job)
    return jobs


def copy_code(folder: Path, options: Options) -> list[Path]:
    """Copy the code of the project into `folder`; return the copies that go on the module search path.

    These are the project's folder, and leyden's own source tree unless leyden is an installed package.

    Raises:
        UserError: if the code is larger than `hydra.launcher.max_code_mb`.
    """
    code, trees = unused_path(folder / "code"), [project_root().resolve()]
    leyden_tree = Path(__file__).resolve().parents[3]
    if (leyden_tree / "pyproject.toml").exists() and leyden_tree not in trees:
        trees.append(leyden_tree)
    search_path: list[Path] = []
    for tree in trees:
        try:
            copy = unused_path(code / tree.name)
            search_path += project_code.copy_code(tree, copy, runs_root().resolve(), options.max_code_mb)
        except UserError as error:
            raise UserError(f"{error}, or raise hydra.launcher.max_code_mb={options.max_code_mb:g}") from error
    return search_path


def _run(*command: str, script: str | None = None) -> str:
    """Run one of SLURM's commands; return its output."""
    try:
        process = subprocess.run(command, input=script, capture_output=True, text=True, timeout=COMMAND_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} has not answered within {COMMAND_TIMEOUT} seconds: is SLURM up?") from error
    if process.returncode:
        lines = [re.sub(r"^(\w+: )?(error: |allocation failure: )?", "", line) for line in process.stderr.splitlines()]
        raise UserError(f"SLURM refuses: {lines[0] if lines else f'{shlex.join(command)} failed'}")
    return process.stdout


# The queue


def job_of(run: Run) -> str | None:
    """Return the id of the job that a run was submitted as."""
    job = _record(run).get("job")
    return job if isinstance(job, str) and re.fullmatch(r"\d+(_\d+)?", job) else None  # scancel gets it


def options_of(run: Run) -> dict[str, Any]:
    """Return the options that a run was submitted with."""
    return _record(run).get("options", {})


def _record(run: Run) -> dict[str, Any]:
    """Return the record of a run's submission; only `submit` writes it, because the job may run already.

    Raises:
        UserError: if this leyden does not read its format.
    """
    path = run.path / "slurm.json"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    SUBMISSION.check(path, record)
    return record


def queue(runs: Iterable[Run]) -> dict[str, Job] | None:
    """Return the jobs of all runs that may still be in the queue; None if SLURM does not answer."""
    open_jobs = {job.partition("_")[0] for run in runs if (job := _open_job(run))}
    if not open_jobs:
        return {}
    command = ["squeue", f"--jobs={','.join(sorted(open_jobs))}", "--array", "--states=all", "-h", "-o", "%i|%T|%r"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=QUEUE_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # squeue reports an invalid id when it has forgotten the only job
    if process.returncode and "Invalid job id" not in process.stderr:
        return None
    rows = (line.split("|", 2) for line in process.stdout.splitlines())
    return {job: Job(state, reason) for job, state, reason in rows}


def _open_job(run: Run) -> str | None:
    """Return the job of a run that may be in the queue; None for a run whose files this leyden does not read."""
    try:
        return job_of(run) if run.status.get("state") in OPEN_STATES else None
    except UserError:
        return None


def state_and_reason(run: Run, jobs: dict[str, Job] | None) -> tuple[str, str | None]:
    """Return a run's state and the reason for it, from its own status and the state of its job.

    The states queued, starting and cancelled come from the job; a run writes all others itself. Query `jobs` before the
    call, because a run may end in the meantime.
    """
    status = run.status
    state, reason = status.get("state", "broken"), status.get("reason")
    job = job_of(run)
    if job is None or jobs is None:
        return state, reason
    entry = jobs.get(job, FORGOTTEN)
    if entry.state == "PENDING" and state in ("created", "preempted", "killed"):
        return "queued", f"job {job} waits: {entry.reason}"
    if not entry.is_over and state in ("created", "killed"):
        return ("starting" if state == "created" else "running"), f"job {job}"  # file locks may not reach across nodes
    if state == "created":
        output_file = Path(_record(run)["script"]).with_name(f"slurm-{job}.txt")
        if entry.state == "CANCELLED" or not output_file.exists():  # a job that never started writes no output
            return "cancelled", f"job {job} was cancelled before the run began"
        return "failed", f"job {job} ended before the run began; see {output_file}"
    return state, reason


def may_still_run(run: Run, state: str, jobs: dict[str, Job] | None) -> bool:
    """Return whether a run may still train: its job is in the queue, SLURM does not answer, or the run is brand-new."""
    job = job_of(run)
    if job is None:
        return state == "created" and time.time() - run.status["heartbeat"] < START_TIMEOUT
    return jobs is None or not jobs.get(job, FORGOTTEN).is_over


def cancel(jobs: list[str]) -> None:
    """Cancel jobs; running ones get SIGTERM, save a checkpoint and stop."""
    _run("scancel", *jobs)


# Inside a job


def current_job() -> str | None:
    """Return the id of the job that this process belongs to: 12, or 12_3 in an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def run_path(name: str, overrides: list[str]) -> Path | None:
    """Return the directory for a run that `srun leyden train …` starts; None outside of a job.

    Its name ends with the job and the step: a requeued job finds the run by them, and resumes it.
    """
    job = current_job()
    if job is None:
        return None
    step = f"{job}.{os.environ.get('SLURM_STEP_ID', 'batch')}"  # these do not change when SLURM starts the job again
    new_path = runs_root() / name / f"{new_run_id()}-{step}"
    if not is_restarted():
        return new_path
    earlier_paths = new_path.parent.glob(f"*-{step}")
    return max((path for path in earlier_paths if Run(path).manifest.get("overrides") == overrides), default=new_path)


def is_restarted() -> bool:
    """Return whether SLURM has started this process's job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def requeue(signum: int, has_progressed: bool) -> None:
    """Requeue this process's job if a signal stopped its run because of the time limit or a preemption.

    SIGUSR1 warns of the time limit. SIGTERM means that the job is cancelled or requeued, which needs no action, or
    preempted: a preempted job that ends within its grace time would count as failed.
    `has_progressed` tells whether this process has made a step; without one, the job would be requeued forever.
    """
    job = current_job()
    if job is None or signum not in (signal.SIGUSR1, signal.SIGTERM):
        return
    try:
        description = _run("scontrol", "show", "job", job)
        is_preempted = "PreemptTime=" in description and "PreemptTime=None" not in description
        if "JobState=RUNNING" not in description or (signum == signal.SIGTERM and not is_preempted):
            return
        if not has_progressed and not is_preempted:
            say(f"job {job} made no step within its time limit and is not put back into the queue: give it more time")
            return
        _run("scontrol", "requeue", job)
        say(f"job {job} is back in the queue")
    except (OSError, UserError) as error:
        say(f"job {job} could not be put back into the queue: {error}")
