"""Runs as SLURM jobs: the script that sbatch gets, what the queue says of a run, and the way back into the queue.

The run directory is the job. The script, kept as job.sh, goes on with the run in it, with the code that was
submitted; when SLURM starts the job again, that is all there is to do.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

from leyden.config.check import validated
from leyden.config.composition import Composition
from leyden.console import say
from leyden.errors import UserError
from leyden.files import free_path, write_atomically
from leyden.run import code_copy
from leyden.run.directory import Run, new_run_id, runs_root

LAUNCHER = "hydra_plugins.leyden_slurm.SlurmLauncher"
PATIENCE = 30  # seconds for SLURM's commands to answer
START = 60.0  # that the ranks of a run may take to begin
GLANCE = 5  # for squeue, without which a list of runs is still worth showing
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}
SHELL = ("setup", "extra")  # options that are, or may be, commands: whoever types them means them


def _one_line(text: str) -> str:
    if not text or not text.isprintable() or "\\" in text:
        raise ValueError("should be one line of printable characters without \\")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Text = Line | int | None  # a word that sbatch understands, a partition named 2080 too
Key = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
TIME = "a time limit has a colon, 30:00 is 30 minutes, and quotes in a file, where 1:30:00 would be a number"


class Options(BaseModel):
    """What `hydra.launcher` says; null leaves it to the cluster. conf/hydra/launcher/slurm.yaml explains each."""

    model_config = ConfigDict(extra="forbid", strict=True)
    partition: Text
    account: Text
    qos: Text
    time: Annotated[str, Field(pattern=r"^(\d+-\d+(:\d+){0,2}|\d+(:\d+){1,2})$")] | None = Field(description=TIME)
    gres: Text
    constraint: Text
    cpus_per_task: PositiveInt | None
    mem: Text
    max_parallel: PositiveInt | None
    warn_seconds: NonNegativeInt
    setup: list[str]
    extra: dict[Key, Line | int | Literal[True]] | None
    max_code_mb: PositiveFloat
    wait: bool

    @classmethod
    def of(cls, node: dict) -> "Options":
        """Check what was composed as `hydra.launcher`.

        Raises:
            UserError: for what is not an option or not a value of one.
        """
        options = validated(cls, node, "hydra.launcher")
        if options.time and seconds(options.time) <= options.warn_seconds:
            raise UserError(
                f"hydra.launcher.time={options.time} is no longer than the warning before its end, "
                f"hydra.launcher.warn_seconds={options.warn_seconds}"
            )
        return options


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


def seconds(time: str) -> int:
    """Return the seconds of a time limit as sbatch reads it: minutes:seconds, hours:minutes:seconds, days-hours…"""
    days, _, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    units = (3600, 60, 1) if days or len(parts) == 3 else (60, 1)
    return 86400 * int(days or 0) + sum(part * unit for part, unit in zip(parts, units, strict=False))


# Into the queue


def is_chosen(composition: Composition) -> bool:
    """Whether a run is to go into SLURM's queue."""
    return composition.launcher.get("_target_") == LAUNCHER


def check(options: Options, configs: list[dict]) -> None:
    """Have SLURM say whether it would take runs with these configs, before anything is made.

    Raises:
        UserError: with what it says.
    """
    if not shutil.which("sbatch"):
        raise UserError("there is no sbatch here: hydra/launcher=slurm submits from a machine of a SLURM cluster")
    for shape, members in _by_shape(configs).items():
        _ask("sbatch", "--test-only", script=_script(options, shape, [Path("run") for _ in members], Path.cwd(), []))


def submit(runs: list[Run], folder: Path, options: Options, code: list[Path]) -> list[str]:
    """Put runs into the queue, as one job, or as a job array for each shape; return the job ids.

    `folder` keeps the scripts and what the jobs print; `code` goes on the module search path.

    Raises:
        UserError: when SLURM does not take a job.
    """
    jobs = []
    for shape, members in _by_shape([run.config for run in runs]).items():
        path = free_path(folder / "job.sh")
        write_atomically(path, _script(options, shape, [runs[i].path for i in members], folder, code))
        before = {i: runs[i].status for i in members}
        for i in members:  # not after sbatch, when the job may have begun
            runs[i].set_status("created", reason=None, exit_code=None)
        try:
            job = _ask("sbatch", "--parsable", str(path)).strip().partition(";")[0]
        except UserError:
            for i, status in before.items():
                runs[i].set_status(
                    status.get("state", "created"), **{k: status.get(k) for k in ("reason", "exit_code")}
                )
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
    own = Path(__file__).resolve().parents[3]
    if (own / "pyproject.toml").exists() and own not in trees:
        trees.append(own)
    search_path = []
    for tree in trees:
        try:
            search_path += code_copy.copy_code(
                tree, free_path(code / tree.name), runs_root().resolve(), options.max_code_mb
            )
        except UserError as error:
            raise UserError(f"{error}, or raise hydra.launcher.max_code_mb={options.max_code_mb:g}") from error
    return search_path


class _Shape(NamedTuple):
    nodes: int
    tasks: int  # on each node
    gpus: int  # on each node


def _by_shape(configs: list[dict]) -> dict[_Shape, list[int]]:
    """Group configs, by their places in the list, by what their jobs ask for: an array's jobs are all alike."""
    groups = defaultdict(list)
    for place, config in enumerate(configs):
        groups[_shape(config["trainer"])].append(place)
    return groups


def _shape(trainer: dict) -> _Shape:
    nodes, tasks = trainer.get("num_nodes", 1), trainer.get("devices", "auto")
    for key, value in (("num_nodes", nodes), ("devices", tasks)):
        if type(value) is not int or value < 1:
            raise UserError(f"trainer.{key}={value}: SLURM must know how many it is to give: write a number")
    return _Shape(nodes, tasks, tasks if trainer.get("accelerator") in ("gpu", "cuda") else 0)


def _script(options: Options, shape: _Shape, paths: list[Path], folder: Path, code: list[Path]) -> str:
    """Return what sbatch gets: the i-th task of an array goes on with the i-th run."""
    lines = ["#!/bin/bash"]
    for key, value in _directives(options, shape, len(paths), folder).items():
        lines.append(f"#SBATCH --{key}" + ("" if value is True else f"={_quoted(key, str(value))}"))
    lines += ["", "set -e", f"cd {shlex.quote(str(Path.cwd()))}"]
    if code:
        lines.append(f"export PYTHONPATH={shlex.quote(':'.join(map(str, code)))}${{PYTHONPATH:+:$PYTHONPATH}}")
    if options.cpus_per_task:
        lines.append(f"export OMP_NUM_THREADS={options.cpus_per_task}")
    lines += options.setup
    if len(paths) == 1:
        lines.append(f"run={shlex.quote(str(paths[0]))}")
    else:
        lines += ["runs=(", *(f"  {shlex.quote(str(path))}" for path in paths), ")"]
        lines.append('run="${runs[SLURM_ARRAY_TASK_ID]}"')
    cpus = f" --cpus-per-task={options.cpus_per_task}" if options.cpus_per_task else ""  # srun does not take sbatch's
    # what one rank's end means for the others, leyden knows; SLURM ends them when one has crashed
    lines.append(f'srun --kill-on-bad-exit=1{cpus} {shlex.quote(sys.executable)} -P -m leyden.cli resume "$run"')
    return "\n".join(lines) + "\n"


def _quoted(key: str, value: str) -> str:
    """Quote a value for a line of sbatch's, which reads quotes as a shell does, but a backslash within them, too.

    Raises:
        UserError: for a value that would not stay what it is, or not on its line.
    """
    try:
        return shlex.quote(_one_line(value))
    except ValueError as error:
        raise UserError(f"sbatch --{key}={value!r}: {error}; the folders of runs are a part of some values") from None


def _directives(options: Options, shape: _Shape, count: int, folder: Path) -> dict[str, Any]:
    gres = options.gres or (f"gpu:{shape.gpus}" if shape.gpus else None)
    limit = f"%{options.max_parallel}" if options.max_parallel else ""
    ours = {
        "job-name": "/".join(folder.parts[-2:]),
        "nodes": shape.nodes,
        "ntasks-per-node": shape.tasks,
        "cpus-per-task": options.cpus_per_task,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "time": options.time,
        "gres": gres,
        "constraint": options.constraint,
        "mem": options.mem,
        "signal": f"USR1@{options.warn_seconds}" if options.warn_seconds else None,
        "requeue": True,
        "open-mode": "append",  # a job that starts again goes on in its file
        "output": folder / ("slurm-%A_%a.txt" if count > 1 else "slurm-%j.txt"),
        "array": f"0-{count - 1}{limit}" if count > 1 else None,
    }
    extra = {key.replace("_", "-"): value for key, value in (options.extra or {}).items()}
    if taken := sorted(ours.keys() & extra.keys()):
        raise UserError(f"hydra.launcher.extra.{taken[0]}: leyden sets this itself, from hydra.launcher or the trainer")
    return {key: value for key, value in (ours | extra).items() if value is not None}


def _ask(*command: str, script: str | None = None) -> str:
    """Run one of SLURM's commands; return what it prints."""
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} has not answered within {PATIENCE} seconds: is SLURM up?") from error
    if done.returncode:
        said = [re.sub(r"^(\w+: )?(error: |allocation failure: )?", "", line) for line in done.stderr.splitlines()]
        raise UserError(f"SLURM refuses: {said[0] if said else f'{shlex.join(command)} failed'}")
    return done.stdout


# What the queue says


def job_of(run: Run) -> str | None:
    """Return the id of the job that a run was submitted as."""
    job = _record(run).get("job")
    return job if isinstance(job, str) and re.fullmatch(r"\d+(_\d+)?", job) else None  # no option of scancel


def options_of(run: Run) -> dict:
    """Return the options that a run was submitted with."""
    return _record(run).get("options", {})


def _record(run: Run) -> dict:
    """What was written when a run was submitted; nobody but the submitter writes it, while the job may run already."""
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
        done = subprocess.run(command, capture_output=True, text=True, timeout=GLANCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:  # which it says when it has forgotten the only one
        return None
    rows = (line.split("|", 2) for line in done.stdout.splitlines())
    return {job: Job(state, reason) for job, state, reason in rows}


def seen(run: Run, jobs: dict[str, Job] | None) -> tuple[str, str | None]:
    """Return a run's state and the reason for it, from its own status and from what SLURM knows of its job.

    Beside the states that a run writes itself there are queued, starting and cancelled. Ask for `jobs` first, for a
    run may end meanwhile.
    """
    status = run.status
    state, reason = status.get("state", "broken"), status.get("reason")
    job = job_of(run)
    if job is None or jobs is None:
        return state, reason
    there = jobs.get(job, GONE)
    if there.state == "PENDING" and state in ("created", "preempted", "killed"):
        return "queued", f"job {job} waits: {there.reason}"
    if not there.is_over and state in ("created", "killed"):
        return ("starting" if state == "created" else "running"), f"job {job}"  # locks may not reach over nodes
    if state == "created":
        printed = Path(_record(run)["script"]).with_name(f"slurm-{job}.txt")
        if there.state == "CANCELLED" or not printed.exists():  # of an array, SLURM forgets what it never started
            return "cancelled", f"job {job} was cancelled before the run began"
        return "failed", f"job {job} ended before the run began; see {printed}"
    return state, reason


def may_go_on(run: Run, state: str, jobs: dict[str, Job] | None) -> bool:
    """Whether SLURM still holds the run's job, or does not say; without a job, whether the run was made just now."""
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


def place(name: str, overrides: list[str]) -> Path | None:
    """Return where the run belongs that somebody's own `srun leyden train …` starts; None outside of a job.

    It is named after job and step, so when SLURM starts the job again it is found, and goes on.
    """
    step = own_step()
    if step is None:
        return None
    new = runs_root() / name / f"{new_run_id()}-{step}"
    begun = new.parent.glob(f"*-{step}") if restarted() else []
    return max((path for path in begun if Run(path).manifest.get("overrides") == overrides), default=new)


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
