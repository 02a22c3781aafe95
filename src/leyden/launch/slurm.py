"""Runs as SLURM jobs: how they get into the queue, what it says of them, and how a job puts itself back into it.

The run directory is the job. Its script (see `slurm_script`) goes on with the run in it, so when SLURM starts the job
again, nothing more has to be done.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from leyden.config.composition import Composition
from leyden.console import say
from leyden.errors import UserError
from leyden.files import free_path, write_atomically
from leyden.launch.slurm_script import Options, group_by_shape, job_script
from leyden.run import project_code
from leyden.run.directory import Run, new_run_id, runs_root

LAUNCHER = "hydra_plugins.leyden_slurm.SlurmLauncher"
PATIENCE = 30  # seconds for SLURM's commands to answer
START = 60.0  # that the ranks of a run may take to begin
GLANCE = 5  # for squeue, without which a list of runs is still worth showing
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}


class Job(NamedTuple):
    """What the queue says of a job: PENDING, RUNNING, …, and why it waits or ended."""

    state: str
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether SLURM will do no more for it."""
        return self.state in ENDED


OPEN = ("created", "preempted", "running", "killed")  # states of a run that its job may change
GONE = Job("COMPLETED", "forgotten")  # SLURM forgets a job some minutes after its end


# Into the queue


def is_chosen(composition: Composition) -> bool:
    """Whether a run is to go into SLURM's queue."""
    return composition.launcher.get("_target_") == LAUNCHER


def check(options: Options, configs: list[dict]) -> None:
    """Ask SLURM whether it would take runs with these configs, before anything is made.

    Raises:
        UserError: with the reason why it would not.
    """
    if not shutil.which("sbatch"):
        raise UserError("there is no sbatch here: hydra/launcher=slurm submits from a machine of a SLURM cluster")
    for shape, members in group_by_shape(configs).items():
        _ask("sbatch", "--test-only", script=job_script(options, shape, [Path("run") for _ in members], Path.cwd(), []))


def submit(runs: list[Run], folder: Path, options: Options, code: list[Path]) -> list[str]:
    """Put runs into the queue, as one job, or as a job array for each shape; return the job ids.

    `folder` keeps the scripts and what the jobs print; `code` goes on the module search path.

    Raises:
        UserError: when SLURM does not take a job.
    """
    jobs = []
    for shape, members in group_by_shape([run.config for run in runs]).items():
        path = free_path(folder / "job.sh")
        write_atomically(path, job_script(options, shape, [runs[i].path for i in members], folder, code))
        statuses = {i: runs[i].status for i in members}
        for i in members:  # before sbatch, because the job may begin at once
            runs[i].set_status("created", reason=None, exit_code=None)
        try:
            job = _ask("sbatch", "--parsable", str(path)).strip().partition(";")[0]
        except UserError:
            for i, status in statuses.items():
                facts = {key: status.get(key) for key in ("reason", "exit_code")}
                runs[i].set_status(status.get("state", "created"), **facts)
            raise
        for task, i in enumerate(members):
            facts = {"job": f"{job}_{task}" if len(members) > 1 else job, "script": str(path)}
            submitted = datetime.now().astimezone().isoformat(timespec="seconds")
            facts |= {"submitted": submitted, "options": options.model_dump()}
            write_atomically(runs[i].path / "slurm.json", json.dumps(facts, indent=2) + "\n")
        jobs.append(job)
    return jobs


def keep_code(folder: Path, options: Options) -> list[Path]:
    """Copy the code that is being worked on into `folder`; return what goes on the module search path.

    That is the working directory, and leyden's own tree where it is not an installed package.

    Raises:
        UserError: when there is too much of it.
    """
    code, trees = free_path(folder / "code"), [Path.cwd().resolve()]
    leyden_tree = Path(__file__).resolve().parents[3]
    if (leyden_tree / "pyproject.toml").exists() and leyden_tree not in trees:
        trees.append(leyden_tree)
    search_path = []
    for tree in trees:
        try:
            copy = free_path(code / tree.name)
            search_path += project_code.copy_code(tree, copy, runs_root().resolve(), options.max_code_mb)
        except UserError as error:
            raise UserError(f"{error}, or raise hydra.launcher.max_code_mb={options.max_code_mb:g}") from error
    return search_path


def _ask(*command: str, script: str | None = None) -> str:
    """Run one of SLURM's commands; return what it prints."""
    try:
        process = subprocess.run(command, input=script, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} has not answered within {PATIENCE} seconds: is SLURM up?") from error
    if process.returncode:
        lines = [re.sub(r"^(\w+: )?(error: |allocation failure: )?", "", line) for line in process.stderr.splitlines()]
        raise UserError(f"SLURM refuses: {lines[0] if lines else f'{shlex.join(command)} failed'}")
    return process.stdout


# What the queue says


def job_of(run: Run) -> str | None:
    """Return the id of the job that a run was submitted as."""
    job = _record(run).get("job")
    return job if isinstance(job, str) and re.fullmatch(r"\d+(_\d+)?", job) else None  # scancel gets it


def options_of(run: Run) -> dict:
    """Return the options that a run was submitted with."""
    return _record(run).get("options", {})


def _record(run: Run) -> dict:
    """Read what was written when a run was submitted. Only the submitter writes it, since the job may run already."""
    try:
        record = json.loads((run.path / "slurm.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def queue(runs: Iterable[Run]) -> dict[str, Job] | None:
    """Ask once for the jobs of all runs that may still be in the queue; None when SLURM does not answer."""
    open_jobs = {job.partition("_")[0] for run in runs if (job := job_of(run)) and run.status.get("state") in OPEN}
    if not open_jobs:
        return {}
    command = ["squeue", f"--jobs={','.join(sorted(open_jobs))}", "--array", "--states=all", "-h", "-o", "%i|%T|%r"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=GLANCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if (
        process.returncode and "Invalid job id" not in process.stderr
    ):  # squeue says so when it has forgotten the only job
        return None
    rows = (line.split("|", 2) for line in process.stdout.splitlines())
    return {job: Job(state, reason) for job, state, reason in rows}


def state_and_reason(run: Run, jobs: dict[str, Job] | None) -> tuple[str, str | None]:
    """Return a run's state and the reason for it, from its own status and from what SLURM knows of its job.

    Beside the states that a run writes itself there are queued, starting and cancelled. Ask for `jobs` first, for a
    run may end meanwhile.
    """
    status = run.status
    state, reason = status.get("state", "broken"), status.get("reason")
    job = job_of(run)
    if job is None or jobs is None:
        return state, reason
    entry = jobs.get(job, GONE)
    if entry.state == "PENDING" and state in ("created", "preempted", "killed"):
        return "queued", f"job {job} waits: {entry.reason}"
    if not entry.is_over and state in ("created", "killed"):
        return ("starting" if state == "created" else "running"), f"job {job}"  # file locks may not reach across nodes
    if state == "created":
        output_file = Path(_record(run)["script"]).with_name(f"slurm-{job}.txt")
        if entry.state == "CANCELLED" or not output_file.exists():  # SLURM forgets what it never started
            return "cancelled", f"job {job} was cancelled before the run began"
        return "failed", f"job {job} ended before the run began; see {output_file}"
    return state, reason


def may_go_on(run: Run, state: str, jobs: dict[str, Job] | None) -> bool:
    """Whether SLURM still has the run's job, or does not answer; without a job, whether the run was made just now."""
    job = job_of(run)
    if job is None:
        return state == "created" and time.time() - run.status["heartbeat"] < START
    return jobs is None or not jobs.get(job, GONE).is_over


def cancel(jobs: list[str]) -> None:
    """Take jobs out of the queue; those that train get SIGTERM, save a checkpoint and stop."""
    _ask("scancel", *jobs)


# Inside a job


def own_job() -> str | None:
    """Return the id of the job that this process is a part of: 12, or 12_3 in an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def own_step() -> str | None:
    """Return `<job>.<step>`, which stays the same when SLURM starts a job again."""
    job = own_job()
    return f"{job}.{os.environ.get('SLURM_STEP_ID', 'batch')}" if job else None


def run_path(name: str, overrides: list[str]) -> Path | None:
    """Return where the run belongs that somebody's own `srun leyden train …` starts; None outside of a job.

    It is named after job and step, so that it is found, and goes on, when SLURM starts the job again.
    """
    step = own_step()
    if step is None:
        return None
    new = runs_root() / name / f"{new_run_id()}-{step}"
    earlier = new.parent.glob(f"*-{step}") if restarted() else []
    return max((path for path in earlier if Run(path).manifest.get("overrides") == overrides), default=new)


def restarted() -> bool:
    """Whether SLURM has started this process's job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def requeue(signum: int, progressed: bool) -> None:
    """Put this process's job back into the queue, if that is why its run was stopped by a signal.

    SIGUSR1 is the warning of the time limit. SIGTERM comes from who cancels or requeues the job, and SLURM sees to
    that itself; and from a preemption, where a job that ends within its grace time would count as failed.
    `progressed` is whether a step was made since this process began; where none was, it would loop for ever.
    """
    job = own_job()
    if job is None or signum not in (signal.SIGUSR1, signal.SIGTERM):
        return
    try:
        about = _ask("scontrol", "show", "job", job)
        preempted = "PreemptTime=" in about and "PreemptTime=None" not in about
        if "JobState=RUNNING" not in about or (signum == signal.SIGTERM and not preempted):
            return
        if not progressed and not preempted:
            say(f"job {job} made no step within its time limit and is not put back into the queue: give it more time")
            return
        _ask("scontrol", "requeue", job)
        say(f"job {job} is back in the queue")
    except (OSError, UserError) as error:
        say(f"job {job} could not be put back into the queue: {error}")
