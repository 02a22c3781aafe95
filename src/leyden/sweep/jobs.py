"""The workers that train a sweep's jobs: processes on this machine, SLURM's queue, or a Hydra launcher."""

import faulthandler
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

from hydra.core.utils import JobReturn, JobStatus

from leyden.config.user_code import describe
from leyden.distributed.world import cores
from leyden.launch import children, failures, slurm
from leyden.launch.children import Children
from leyden.launch.exit_code import exit_code
from leyden.launch.start import STOP_TIMEOUT, start
from leyden.run.directory import Run

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 15.0  # seconds between two polls of the queue; the pause grows


@dataclass
class Job:
    """One run of a sweep: its number, its overrides, and the number of its restarts."""

    number: int
    overrides: list[str]
    run: Run | None = None
    num_retries: int = 0  # how often it was started again after a failure
    num_deaths: int = 0  # times in a row that it was killed without a new checkpoint
    checkpoint_names: frozenset[str] = frozenset()  # the checkpoints that it had when it was last started


class Ending(NamedTuple):
    """The end of a job: the run's state, the reason, and the return value of a task that makes no run."""

    state: str
    reason: str | None = None
    return_value: Any = None


class Workers:
    """The base of the workers, which train jobs in processes, in SLURM's queue or by a Hydra launcher."""

    waits_for_jobs = True  # if False, the sweep ends once all jobs are submitted
    takes_over = False  # whether `start` accepts a job that is already running, and waits for it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End all jobs that only this process keeps alive."""

    @property
    def signum(self) -> int | None:
        """The first signal that this process received and passed on to the jobs."""
        return None

    @property
    def has_room(self) -> bool:
        """Whether one more job may be started."""
        raise NotImplementedError

    def start(self, job: Job) -> None:
        """Start a job, or resume it.

        Raises:
            UserError: if its config is wrong.
        """
        raise NotImplementedError

    def wait(self, seconds: float) -> list[tuple[Job, Ending]]:
        """Wait a short time for jobs to end; return the jobs that ended."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop all jobs; each saves a checkpoint first."""


class Processes(Workers):
    """Jobs on this machine, each in its own process, so that a crash of one does not end the others."""

    def __init__(self, freeze: Callable[[Job], Run], num_jobs: int) -> None:
        self._freeze, self._num_jobs = freeze, num_jobs
        self._children = Children(__name__, "leyden.sweep.pruning")  # modules that are imported once, not in each job
        self._running_jobs: dict[Any, tuple[Job, int]] = {}  # job and slot by process

    @property
    def signum(self) -> int | None:
        """The first signal that this process received."""
        return self._children.signum

    @property
    def has_room(self) -> bool:
        """Whether fewer jobs are running than `num_jobs`."""
        return len(self._running_jobs) < self._num_jobs

    def __enter__(self) -> Self:
        self._children.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes; after an error in this process, jobs that are still training save a checkpoint first."""
        deadline = time.monotonic() + STOP_TIMEOUT
        if self._children.processes:
            self.stop()
        while self._children.processes and time.monotonic() < deadline:
            self._children.wait_for_any(1.0)
        self._children.__exit__()

    def start(self, job: Job) -> None:
        """Create the run, or open it, and start its process."""
        job.run = job.run or self._freeze(job)
        slot = min(set(range(self._num_jobs)) - {slot for _, slot in self._running_jobs.values()})
        environ = self._environ(job.run.config["trainer"], slot)
        process = self._children.start(work, job.run.path, name=f"job {job.number}", environ=environ, on_orphaned=_stop)
        self._running_jobs[process] = (job, slot)

    def wait(self, seconds: float) -> list[tuple[Job, Ending]]:
        """Wait for a process to end."""
        ended_jobs = []
        for process in self._children.wait_for_any(seconds):
            job, _ = self._running_jobs.pop(process)
            assert job.run is not None
            _note_exit(job.run, process.exitcode)
            ended_jobs.append((job, read_ending(job.run, process.exitcode)))
        return ended_jobs

    def stop(self) -> None:
        """Send SIGTERM to all jobs."""
        self._children.forward(signal.SIGTERM)

    def _environ(self, trainer: dict, slot: int) -> dict[str, str]:
        """Return the environment of a job, with its share of the cores and of the GPUs."""
        environ = dict(os.environ)
        if self._num_jobs == 1:
            return environ
        devices = trainer.get("devices")
        num_devices = max(devices, 1) if isinstance(devices, int) else 1
        environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // (self._num_jobs * num_devices))))
        on_gpu = trainer.get("accelerator") in ("gpu", "cuda", "auto")
        if on_gpu and isinstance(devices, int) and (gpus := visible_gpus()):  # a list of devices already names its GPUs
            job_gpus = [gpus[(slot * num_devices + i) % len(gpus)] for i in range(min(num_devices, len(gpus)))]
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(job_gpus)
        return environ


def work(path: Path) -> None:
    """Train one job; a new process calls this."""
    faulthandler.register(signal.SIGUSR2)  # on this signal, the process prints its stack
    children.START_METHOD = "fork"  # safe here: torch is loaded, and has started no threads yet
    with (path / "console.txt").open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    code = exit_code(lambda: start(Run(path)) and None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@cache
def visible_gpus() -> list[str]:
    """List the GPUs of this machine that may be used, without loading torch."""
    visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible_devices is not None:
        return [gpu for gpu in visible_devices.split(",") if gpu and gpu != "-1"]
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return []


class Queue(Workers):
    """Jobs that SLURM trains. Jobs started together become a job array, which does not need this process."""

    takes_over = True

    def __init__(self, launcher: Any, freeze: Callable[[Job], Run], num_jobs: float, waits_for_jobs: bool) -> None:
        self.waits_for_jobs = waits_for_jobs
        self._launcher, self._freeze, self._num_jobs = launcher, freeze, num_jobs
        self._new_jobs: list[Job] = []
        self._queued_jobs: list[Job] = []
        self._pause = FIRST_PAUSE

    @property
    def has_room(self) -> bool:
        """Whether fewer jobs are in the queue than `num_jobs`."""
        return len(self._new_jobs) + len(self._queued_jobs) < self._num_jobs

    def start(self, job: Job) -> None:
        """Create the run; a job that was queued before a resume is not submitted again."""
        job.run = job.run or self._freeze(job)
        jobs = slurm.queue([job.run])
        state, _ = slurm.state_and_reason(job.run, jobs)
        is_submitted = slurm.job_of(job.run) is not None and slurm.may_still_run(job.run, state, jobs)
        (self._queued_jobs if is_submitted or state == "running" else self._new_jobs).append(job)

    def submit(self) -> None:
        """Put the new jobs into the queue."""
        if self._new_jobs:
            self._launcher.submit([job.run for job in self._new_jobs])
            self._queued_jobs += self._new_jobs
            self._new_jobs = []

    def wait(self, seconds: float) -> list[tuple[Job, Ending]]:
        """Submit new jobs and poll the queue, with growing pauses to spare the scheduler."""
        self.submit()
        time.sleep(self._pause)
        slurm_jobs = slurm.queue([job.run for job in self._queued_jobs if job.run])
        ended_jobs = []
        for job in self._queued_jobs:
            assert job.run is not None
            state, reason = slurm.state_and_reason(job.run, slurm_jobs)
            if state not in ("queued", "starting", "running") and not slurm.may_still_run(job.run, state, slurm_jobs):
                ended_jobs.append((job, Ending("failed" if state == "cancelled" else state, reason)))
        self._queued_jobs = [job for job in self._queued_jobs if job not in [ended_job for ended_job, _ in ended_jobs]]
        self._pause = FIRST_PAUSE if ended_jobs else min(LONGEST_PAUSE, 1.2 * self._pause)
        return ended_jobs

    def stop(self) -> None:
        """Cancel the jobs; those that are running save a checkpoint first."""
        if jobs := [job for job in (slurm.job_of(j.run) for j in self._queued_jobs if j.run) if job]:
            slurm.cancel(jobs)


class Batches(Workers):
    """Jobs that a Hydra launcher starts in batches: under torchrun, with joblib, or for tasks that make no run."""

    def __init__(self, launcher: Any, size: float, runs: Callable[[], dict[int, Run]]) -> None:
        self.job_returns: list[Sequence[JobReturn]] = []
        self._launcher, self._batch_size, self._find_runs = launcher, size, runs
        self._batch: list[Job] = []

    @property
    def has_room(self) -> bool:
        """Whether the batch is not full yet."""
        return len(self._batch) < self._batch_size

    def start(self, job: Job) -> None:
        """Add a job to the batch."""
        self._batch.append(job)

    def wait(self, seconds: float) -> list[tuple[Job, Ending]]:
        """Launch the batch in groups of consecutive jobs, because a launcher numbers its jobs from the first on."""
        self._batch.sort(key=lambda job: job.number)
        job_returns: list[tuple[Job, JobReturn]] = []
        for _, group in itertools.groupby(enumerate(self._batch), lambda pair: pair[1].number - pair[0]):
            jobs = [job for _, job in group]
            results = self._launcher.launch([job.overrides for job in jobs], initial_job_idx=jobs[0].number)
            self.job_returns.append(results)
            job_returns += zip(jobs, results, strict=True)
        self._batch = []
        runs = self._find_runs()
        return [(job, self._ending(job, job_return, runs.get(job.number))) for job, job_return in job_returns]

    def _ending(self, job: Job, job_return: JobReturn, run: Run | None) -> Ending:
        job.run = run
        if run is not None:
            return read_ending(run, 0 if job_return.status == JobStatus.COMPLETED else 1)
        if job_return.status == JobStatus.COMPLETED:
            return Ending("finished", None, job_return.return_value)
        error = job_return._return_value
        return Ending("failed", describe(error) if isinstance(error, BaseException) else str(error), error)


def _note_exit(run: Run, exit_code: int) -> None:
    """Set a run's status if its process exited by itself without setting it."""
    run = Run(run.path)
    if 0 <= exit_code <= 128 and run.status.get("state") == "killed":
        run.set_status("failed", exit_code=exit_code or 1, reason=_last_message(run, exit_code))


def _last_message(run: Run, exit_code: int) -> str:
    path = run.path / "console.txt"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    last_line = lines[-1] if lines else ""
    if last_line.startswith("leyden: "):
        return last_line.removeprefix("leyden: ")
    return str(failures.exit_without_reason(exit_code))


def read_ending(run: Run, exit_code: int) -> Ending:
    """Return how a run ended, from its status and the exit code of its process."""
    status = Run(run.path).status
    state, reason = status.get("state", "failed"), status.get("reason")
    if exit_code < 0 and state not in ("finished", "pruned"):
        return Ending("killed", f"killed by {signal.Signals(-exit_code).name}")
    if exit_code > 128 and state == "failed":  # a signal ended one of several ranks
        return Ending("killed", reason)
    if state in ("created", "running"):
        return Ending("failed", _last_message(run, exit_code))
    return Ending(state, reason)
