"""The search: asks the study for points, trains their jobs, and tells the study the results."""

import contextlib
import shlex
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from leyden.config.locations import relative_to_cwd
from leyden.console import complain, put
from leyden.distributed.signals import Interrupted
from leyden.errors import RunError, UserError
from leyden.sweep.directory import Sweep
from leyden.sweep.jobs import Batches, Ending, Job, Workers
from leyden.sweep.live import Live, Overview
from leyden.sweep.plan import Plan
from leyden.sweep.point import Point, read_results

POLL_SECONDS = 1.0  # between two polls of the running jobs
MAX_LISTED_JOBS = 20  # jobs that the message of an interrupted sweep lists
MIN_TRIALS_FOR_PAGE = 8  # with fewer, no page is written when the sweep ends; `leyden show` always writes it
MAX_DEATHS = 3  # times that a job may be killed in a row without a new checkpoint


class Search:
    """Trains the points that a study chooses, until all trials have ended."""

    def __init__(self, sweep: Sweep, plan: Plan, workers: Workers) -> None:
        self.sweep, self.study, self.objectives = sweep, sweep.study, sweep.objectives
        self.settings, self.space, self.points = plan.settings, plan.space, plan.points
        self.workers = workers
        self.num_trials = plan.settings.n_trials or len(plan.points)
        if plan.points:
            self.num_trials = min(self.num_trials, len(plan.points))
        self.num_trials += sum("retry_of" in trial.user_attrs for trial in self.trials)
        self.num_trials = max(self.num_trials, self._num_asked())  # existing trials count even if n_trials is lower now
        self.study.set_user_attr("total", self.num_trials)
        self.open_points: dict[int, Point] = {}
        self.running_jobs: dict[int, Job] = {}
        self._adopted_jobs: set[int] = set()  # jobs of an earlier sweeper that this one has not checked yet
        self._error: UserError | None = None
        self._task_error: Exception | None = None  # raised by the last failed job of a task that makes no run

    @property
    def trials(self) -> list[FrozenTrial]:
        """The study's trials; do not modify them, since they are not copied."""
        return self.study.get_trials(deepcopy=False)

    def run(self) -> None:
        """Search until all trials have ended, or a signal arrives."""
        for trial in self.trials:
            if trial.state == TrialState.RUNNING:
                self._adopt(trial)
        for point in self.settings.enqueue[len(self.trials) :]:
            self.study.enqueue_trial(self.space.convert(point))
        varied_keys = {name for axis in self.space.axes for name in axis.names}
        is_drawn = not isinstance(self.workers, Batches)  # jobs of Hydra's launchers write to the terminal
        overview = Overview(self.sweep, self.num_trials, self.running_jobs)
        try:
            with self.workers, Live(overview, varied_keys, is_drawn=is_drawn) as live:
                while self._start_jobs() or self.running_jobs:
                    if not self.workers.waits_for_jobs:
                        self.workers.submit()
                        return
                    for job, ending in self.workers.wait(POLL_SECONDS):
                        del self.running_jobs[job.number]
                        self._handle_end(job, ending)
                        live.report_end(job, ending)
                    live.refresh()
        except Interrupted as interruption:  # a signal came between two batches, or while waiting for the queue
            self._report_interruption(interruption)
            raise
        self._finish()

    # Points

    def _adopt(self, trial: FrozenTrial) -> None:
        """Continue a trial that was running when the sweep stopped."""
        runs = self.sweep.runs()
        for job in self._open_point(trial).jobs:
            run = runs.get(job.number)
            if run and (run.path / "status.json").exists():
                job.run = run
                self._adopted_jobs.add(job.number)

    def _next_point(self) -> Point:
        """Have the study choose the next point."""
        waiting_numbers = [t.number for t in self.trials if t.state == TrialState.WAITING]
        with self._sampling(waiting_numbers[0] if waiting_numbers else len(self.trials)):
            trial = self.study.ask()
            self.space.suggest(trial)
        return self._open_point(self.trials[trial.number])

    @contextlib.contextmanager
    def _sampling(self, number: int) -> Iterator[None]:
        """Give the study the sampler of trial `number` while in this block, instead of its default sampler."""
        index = sum("retry_of" not in trial.user_attrs for trial in self.trials[:number])
        default_sampler, self.study.sampler = self.study.sampler, self.settings.build_sampler(self.points, index)
        try:
            yield
        finally:
            self.study.sampler = default_sampler

    def _open_point(self, trial: FrozenTrial) -> Point:
        chosen_keys = set(trial.params)
        if any(axis.name not in chosen_keys and axis.is_active(trial.params) for axis in self.space.axes):
            with self._sampling(trial.number):  # the sweep was killed while the point was chosen
                self.space.suggest(Trial(self.study, trial._trial_id))
            trial = self.trials[trial.number]
        overrides = self.space.overrides(trial.params)
        jobs = [
            Job(number, [*overrides, *seed_and_fold])
            for number, seed_and_fold in zip(self.sweep.job_numbers(trial.number), self.sweep.jobs, strict=True)
        ]
        point = self.open_points[trial.number] = Point(trial, jobs, deque(jobs))
        return point

    def _earlier_trial(self, point: Point) -> FrozenTrial | None:
        """Return an earlier trial of the same point."""
        params = point.trial.params
        completed_trials = (t for t in self.trials if t.state == TrialState.COMPLETE)
        return next((t for t in completed_trials if t.params == params), None)

    # Jobs

    def _start_jobs(self) -> bool:
        """Start as many jobs as may run; return whether other processes still work on all the remaining ones."""
        while self.workers.has_room and self.workers.signum is None and self._error is None:
            ready_points = [
                point for point in self.open_points.values() if point.pending_jobs and not self._waits_for_first(point)
            ]
            point = next((p for p in ready_points if not self._is_busy(p.pending_jobs[0])), None)
            if not ready_points and self._num_asked() < self.num_trials:
                point = self._next_new_point()
            if point is None:
                return bool(ready_points) and not self.running_jobs and not time.sleep(POLL_SECONDS)
            self._start_job(point.pending_jobs.popleft())
        return False

    def _num_asked(self) -> int:
        return sum(t.state != TrialState.WAITING for t in self.trials)

    def _next_new_point(self) -> Point | None:
        """Have the study choose points until it chooses a new one, since equal points have the same result."""
        while self._num_asked() < self.num_trials:
            point = self._next_point()
            earlier_trial = None if self.settings.is_grid else self._earlier_trial(point)
            if earlier_trial is None:
                return point
            self._set_attributes(point, same_as=earlier_trial.number)
            self._close(point, list(earlier_trial.values))
        return None

    def _waits_for_first(self, point: Point) -> bool:
        """Return whether a job waits until its point's first job has shown that the others are worth training."""
        may_end_early = self.settings.prunes or self.settings.race
        return bool(may_end_early) and not point.results and point.pending_jobs[0] is not point.jobs[0]

    def _is_busy(self, job: Job) -> bool:
        """Return whether a process of an earlier, ended sweeper still works on a job."""
        return job.run is not None and job.run.is_locked() and not self.workers.takes_over

    def _start_job(self, job: Job) -> None:
        """Start or resume a job, or handle its end if it ended while no sweeper was running."""
        if job.number in self._adopted_jobs and job.run:
            self._adopted_jobs.remove(job.number)
            status = job.run.status
            if status.get("state") in ("finished", "pruned", "failed"):
                self._handle_end(job, Ending(status["state"], status.get("reason")))
                return
        if job.run:
            job.checkpoint_names = frozenset(path.name for path in job.run.checkpoints())
        try:
            self.workers.start(job)
            self.running_jobs[job.number] = job
        except (UserError, OSError) as error:
            self._handle_end(job, Ending("failed", str(error)))

    def _handle_end(self, job: Job, ending: Ending) -> None:
        """Close the point of an ended job, or start one of its jobs again."""
        point = self.open_points.get(self.sweep.trial_of(job.number))
        if point is None:  # the trial of this job has ended in the meantime, so its result is not needed
            return
        if ending.state == "finished":
            self._handle_result(point, job, ending)
        elif ending.state == "pruned":
            self._close(point, None, TrialState.PRUNED)
        elif ending.state in ("interrupted", "preempted") and (self.workers.signum or self._error):
            point.pending_jobs.append(job)  # the job continues when the sweep is resumed
        elif ending.state in ("killed", "preempted") and (self.workers.signum or self._may_restart(job)):
            point.pending_jobs.appendleft(job)
        elif ending.state == "failed" and job.num_retries < self.settings.retries:
            job.num_retries += 1
            point.pending_jobs.appendleft(job)
        else:
            self._handle_failure(point, job, ending)

    def _may_restart(self, job: Job) -> bool:
        """Count the kills of a job's process; return whether the job may be started again."""
        checkpoint_names = frozenset(path.name for path in job.run.checkpoints()) if job.run else frozenset()
        job.num_deaths = 1 if checkpoint_names - job.checkpoint_names else job.num_deaths + 1
        return job.num_deaths <= MAX_DEATHS

    def _handle_result(self, point: Point, job: Job, ending: Ending) -> None:
        results, reason = read_results(job, ending, self.objectives, self.settings)
        if results is None:
            self._handle_failure(point, job, Ending("failed", reason))
            return
        point.results[point.index(job)] = results
        if len(point.results) == len(point.jobs):
            self._close_with_means(point)
        elif results and self.settings.race and self._is_worse(point):
            self._set_attributes(point, values=point.results_as_json())
            self._close(point, None, TrialState.PRUNED)

    def _handle_failure(self, point: Point, job: Job, ending: Ending) -> None:
        """Record a failure; a mistake in the request, which all other jobs share, ends the sweep."""
        reason = ending.reason or ending.state
        self._task_error = ending.return_value if isinstance(ending.return_value, Exception) else None
        if reason.startswith("hydra.sweeper.") and not any(t.state.is_finished() for t in self.trials):
            self._error = UserError(reason)
            self.workers.stop()
        if len(point.jobs) > 1:
            reason = f"job {job.number}: {reason}"
        self._set_attributes(point, reason=reason)
        self._close(point, None, TrialState.FAIL)

    def _is_worse(self, point: Point) -> bool:
        best = next(iter(self.sweep.best_trials()), None)
        return best is not None and point.is_worse(best, self.settings, self.objectives[0].direction)

    def _close_with_means(self, point: Point) -> None:
        if not all(point.results.values()):
            self._set_attributes(point, unmeasured=True)
            self._close(point, None, TrialState.FAIL)
            return
        if len(point.jobs) > 1:
            self._set_attributes(point, values=point.results_as_json(), std=point.stds(), seeds=len(point.results))
        self._close(point, point.means())

    def _set_attributes(self, point: Point, **facts: Any) -> None:
        trial = Trial(self.study, point.trial._trial_id)
        for key, value in facts.items():
            trial.set_user_attr(key, value)

    def _close(self, point: Point, values: list[float] | None, state: TrialState | None = None) -> None:
        """Report a point's values or state to the study, and close the point, so that its pending jobs do not start."""
        self.study.tell(point.trial.number, values, state)
        del self.open_points[point.trial.number]

    # End

    def _finish(self) -> None:
        if self._error:
            raise self._error
        if self.workers.signum is not None and (self.open_points or self._num_asked() < self.num_trials):
            interruption = Interrupted(self.workers.signum)
            self._report_interruption(interruption)
            raise interruption
        self._write_report()
        if failed_trials := self.sweep.failed_trials():
            reason = failed_trials[-1].user_attrs.get("reason")
            message = (
                f"{len(failed_trials)} of {self.num_trials} trials failed, the last: {reason}; "
                f"retry them with: leyden resume {self.sweep.name} --retry"
            )
            if self._task_error is None:
                raise RunError(message)
            self._task_error.add_note(message)
            raise self._task_error

    def _write_report(self) -> None:
        """Write the best point as an experiment, and the page if there are enough trials; print the paths."""
        from leyden.sweep import best

        if not self.sweep.runs():
            return
        if len(self.trials) >= MIN_TRIALS_FOR_PAGE:
            from leyden.sweep import report  # importing it takes some seconds

            _, *written_paths = report.write(self.sweep)
        else:
            written_paths = best.write(self.sweep)
        folder = relative_to_cwd(self.sweep.path)
        for trial in self.sweep.best_trials()[:1] if written_paths else ():
            results = "  ".join(f"{o.metric} {v:.4g}" for o, v in zip(self.objectives, trial.values, strict=True))
            put(f"best: trial {trial.number}  {results}  {written_paths[0].name}")
        put(f"sweep: {folder}  (leyden show {shlex.quote(str(folder))})")

    def _report_interruption(self, interruption: Interrupted) -> None:
        """Print which jobs did not finish, and how to resume."""
        num_ended = sum(t.state.is_finished() for t in self.trials)
        complain(f"{interruption}; {num_ended} of {self.num_trials} trials are done: leyden resume {self.sweep.name}")
        points = self.open_points.values()
        numbers = (job.number for point in points for job in point.jobs if point.index(job) not in point.results)
        unfinished_jobs = [f"job {number}" for number in sorted(numbers)]
        num_started = sum("retry_of" not in trial.user_attrs for trial in self.trials)
        remaining_points = self.points[num_started : self.settings.n_trials]
        unfinished_jobs += [" ".join(self.space.overrides(point)) for point in remaining_points]
        if unfinished_jobs:
            ellipsis = " …" if len(unfinished_jobs) > MAX_LISTED_JOBS else ""
            complain(f"did not finish: {'; '.join(unfinished_jobs[:MAX_LISTED_JOBS])}{ellipsis}")
