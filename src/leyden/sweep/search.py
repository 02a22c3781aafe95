"""The search itself: ask the study for points, keep as many jobs at work as may be, tell the study how they ended."""

import contextlib
import math
import shlex
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, Trial, TrialState

from leyden.config.locations import relative_to_cwd
from leyden.console import complain, put
from leyden.distributed.signals import Interrupted
from leyden.errors import RunError, UserError
from leyden.statistics import paired
from leyden.sweep.directory import Sweep, names_logged, values
from leyden.sweep.jobs import Batches, Ending, Job, Workers, as_numbers
from leyden.sweep.live import Live, Overview
from leyden.sweep.plan import Plan
from leyden.sweep.settings import PAIRS

LOOK = 1.0  # seconds between two looks at what is trained
SHOWN = 20  # jobs that are named when a sweep is interrupted
PAGE = 8  # trials from which on the page is written when the sweep ends; `leyden show` always writes it
DEATHS = 3  # times that a job may be killed in a row without a new checkpoint


@dataclass
class Point:
    """A trial at work: its jobs to be started, and the values of those that have ended."""

    trial: FrozenTrial
    jobs: list[Job]
    waiting: deque[Job]
    values: dict[int, list[float]] = field(default_factory=dict)  # by place among the jobs

    def place(self, job: Job) -> int:
        """Where a job stands among the point's."""
        return job.number - self.jobs[0].number


class Search:
    """A sweep at work."""

    def __init__(self, sweep: Sweep, plan: Plan, workers: Workers) -> None:
        self.sweep, self.study, self.objectives = sweep, sweep.study, sweep.objectives
        self.settings, self.space, self.points = plan.settings, plan.space, plan.points
        self.workers = workers
        self.target = plan.settings.n_trials or len(plan.points)
        if plan.points:
            self.target = min(self.target, len(plan.points))
        self.target += sum("retry_of" in trial.user_attrs for trial in self.trials)
        self.target = max(self.target, self._asked())  # trials that there are stay
        self.study.set_user_attr("total", self.target)
        self.open: dict[int, Point] = {}
        self.at_work: dict[int, Job] = {}
        self._adopted: set[int] = set()  # jobs that an earlier sweeper started and this one has not checked yet
        self._error: UserError | None = None
        self._cause: Exception | None = None  # of the last failure, where the task is not leyden's

    @property
    def trials(self) -> list[FrozenTrial]:
        """The study's trials, to read."""
        return self.study.get_trials(deepcopy=False)

    def run(self) -> None:
        """Search to the end, or until a signal."""
        for trial in self.trials:
            if trial.state == TrialState.RUNNING:
                self._adopt(trial)
        for point in self.settings.enqueue[len(self.trials) :]:
            self.study.enqueue_trial(self.space.take(point))
        varied = {axis.name for axis in self.space.axes}
        is_drawn = not isinstance(self.workers, Batches)  # the jobs of Hydra's launchers write to the terminal
        overview = Overview(self.sweep, self.target)
        try:
            with self.workers, Live(overview, self.at_work, varied, is_drawn=is_drawn) as live:
                while self._fill() or self.at_work:
                    if not self.workers.waits:
                        self.workers.submit()
                        return
                    for job, ending in self.workers.wait(LOOK):
                        del self.at_work[job.number]
                        self._ended(job, ending)
                        live.tell(job, ending)
                    live.refresh()
        except Interrupted as interruption:  # between two batches, or while a queue is waited for
            self._stopped(interruption)
            raise
        self._conclude()

    # Points

    def _adopt(self, trial: FrozenTrial) -> None:
        """Take up a trial that was at work when the sweep stopped."""
        runs = self.sweep.runs()
        for job in self._open(trial).jobs:
            run = runs.get(job.number)
            if run and (run.path / "status.json").exists():
                job.run = run
                self._adopted.add(job.number)

    def _ask(self) -> Point:
        """Have the study choose the next point."""
        waiting = [t.number for t in self.trials if t.state == TrialState.WAITING]
        with self._sampling(waiting[0] if waiting else len(self.trials)):
            trial = self.study.ask()
            self.space.suggest(trial)
        return self._open(self.trials[trial.number])

    @contextlib.contextmanager
    def _sampling(self, number: int) -> Iterator[None]:
        """Give the study a trial's sampler; otherwise it has one that does no work when trials are only read."""
        place = sum("retry_of" not in trial.user_attrs for trial in self.trials[:number])
        reading_sampler, self.study.sampler = self.study.sampler, self.settings.build_sampler(self.points, place)
        try:
            yield
        finally:
            self.study.sampler = reading_sampler

    def _open(self, trial: FrozenTrial) -> Point:
        chosen = set(trial.params)
        if any(axis.name not in chosen and axis.is_there(trial.params) for axis in self.space.axes):
            with self._sampling(trial.number):  # the sweep was killed while the point was chosen
                self.space.suggest(Trial(self.study, trial._trial_id))
            trial = self.trials[trial.number]
        overrides = self.space.overrides(trial.params)
        jobs = [
            Job(number, [*overrides, *more])
            for number, more in zip(self.sweep.numbers(trial.number), self.sweep.jobs, strict=True)
        ]
        point = self.open[trial.number] = Point(trial, jobs, deque(jobs))
        return point

    def _earlier_trial(self, point: Point) -> FrozenTrial | None:
        """Return an earlier trial of the same point."""
        params = point.trial.params
        done = (t for t in self.trials if t.state == TrialState.COMPLETE)
        return next((t for t in done if t.params == params), None)

    # Jobs

    def _fill(self) -> bool:
        """Start as many jobs as may be at work; return whether all that is left is still held by other processes."""
        while self.workers.free and self.workers.signum is None and self._error is None:
            ready = [point for point in self.open.values() if point.waiting and not self._waits_for_first(point)]
            free = next((point for point in ready if not self._is_busy(point.waiting[0])), None)
            if not ready and self._asked() < self.target:
                free = self._new()
            if free is None:
                return bool(ready) and not self.at_work and not time.sleep(LOOK)
            self._start(free.waiting.popleft())
        return False

    def _asked(self) -> int:
        return sum(t.state != TrialState.WAITING for t in self.trials)

    def _new(self) -> Point | None:
        """Have the study choose points until one is new: an equal point with the same seed would end the same."""
        while self._asked() < self.target:
            point = self._ask()
            same = None if self.settings.is_grid else self._earlier_trial(point)
            if same is None:
                return point
            self._note(point, same_as=same.number)
            self._tell(point, list(same.values))
        return None

    def _waits_for_first(self, point: Point) -> bool:
        """Whether the first job of a point still has to show that the others are worth training."""
        is_cautious = self.settings.prunes or self.settings.race
        return bool(is_cautious) and not point.values and point.waiting[0] is not point.jobs[0]

    def _is_busy(self, job: Job) -> bool:
        """Whether a process that outlived the sweep that started it still works on a job."""
        return job.run is not None and job.run.is_locked() and not self.workers.takes_over

    def _start(self, job: Job) -> None:
        """Start a job, or go on with it; if it ended while no sweeper was at work, take in how."""
        if job.number in self._adopted and job.run:
            self._adopted.remove(job.number)
            status = job.run.status
            if status.get("state") in ("finished", "pruned", "failed"):
                self._ended(job, Ending(status["state"], status.get("reason")))
                return
        if job.run:
            job.saved = frozenset(path.name for path in job.run.checkpoints())
        try:
            self.workers.start(job)
            self.at_work[job.number] = job
        except (UserError, OSError) as error:
            self._ended(job, Ending("failed", str(error)))

    def _ended(self, job: Job, ending: Ending) -> None:
        """Take in how a job ended."""
        point = self.open.get(self.sweep.trial_of(job.number))
        if point is None:  # its trial has ended meanwhile, so this job's result is not needed
            return
        if ending.state == "finished":
            self._finished(point, job, ending)
        elif ending.state == "pruned":
            self._tell(point, None, TrialState.PRUNED)
        elif ending.state in ("interrupted", "preempted") and (self.workers.signum or self._error):
            point.waiting.append(job)  # goes on when the sweep does
        elif ending.state in ("killed", "preempted") and (self.workers.signum or self._may_live(job)):
            point.waiting.appendleft(job)
        elif ending.state == "failed" and job.tries < self.settings.retries:
            job.tries += 1
            point.waiting.appendleft(job)
        else:
            self._failed(point, job, ending)

    def _may_live(self, job: Job) -> bool:
        """Whether a job whose process was killed is started again."""
        saved = frozenset(path.name for path in job.run.checkpoints()) if job.run else frozenset()
        job.deaths = 1 if saved - job.saved else job.deaths + 1
        return job.deaths <= DEATHS

    def _finished(self, point: Point, job: Job, ending: Ending) -> None:
        results, reason = self._results(job, ending)
        is_asked_for = job.run is not None and self.settings.objective is not None
        if results is None and self.settings.is_grid and not is_asked_for:
            results = []  # a grid does not learn from the objective
        for objective, value in zip(self.objectives, results or (), strict=False):
            if not math.isfinite(value):
                results, reason = None, f"{objective.metric} is {value}"
        if results is None:
            self._failed(point, job, Ending("failed", reason))
            return
        point.values[point.place(job)] = results
        if len(point.values) == len(point.jobs):
            self._tell_mean(point)
        elif results and self.settings.race and self._is_worse(point):
            self._note(point, values={str(place): v for place, v in sorted(point.values.items())})
            self._tell(point, None, TrialState.PRUNED)

    def _results(self, job: Job, ending: Ending) -> tuple[list[float] | None, str]:
        """Return what a finished job has of the objectives; None, and why, where one is missing."""
        if job.run is None:
            reason = f"returned {ending.returned!r}, which is not {len(self.objectives)} numbers"
            return as_numbers(ending.returned, len(self.objectives)), reason
        by_name = {o.metric: v for o, v in zip(self.objectives, values(job.run, self.objectives), strict=True)}
        missing = [metric for metric, value in by_name.items() if value is None]
        if missing:
            logged = ", ".join(names_logged(job.run))
            return None, f"hydra.sweeper.objective={missing[0]} was not logged; logged: {logged}"
        return [float(value) for value in by_name.values() if value is not None], ""

    def _failed(self, point: Point, job: Job, ending: Ending) -> None:
        """Record a failure; a request that cannot be right for any other job either ends the sweep."""
        reason = ending.reason or ending.state
        self._cause = ending.returned if isinstance(ending.returned, Exception) else None
        if reason.startswith("hydra.sweeper.") and not any(t.state.is_finished() for t in self.trials):
            self._error = UserError(reason)
            self.workers.stop()
        if len(point.jobs) > 1:
            reason = f"job {job.number}: {reason}"
        self._note(point, reason=reason)
        self._tell(point, None, TrialState.FAIL)

    def _is_worse(self, point: Point) -> bool:
        """Whether a point is clearly worse than the best, on the seeds and folds that both have."""
        best = next(iter(self.sweep.best()), None)
        theirs = {int(place): v for place, v in best.user_attrs.get("values", {}).items()} if best else {}
        sign = 1 if self.objectives[0].direction == "maximize" else -1
        common = [place for place in point.values if place in theirs]
        if len(common) < PAIRS:
            return False
        here, there = (np.array([sign * of[place][0] for place in common]) for of in (point.values, theirs))
        overlap = 1 / (self.settings.folds - 1) if self.settings.folds else 0.0
        difference = paired(there, here, overlap)
        return difference.value < 0 and difference.p is not None and difference.p / 2 < self.settings.race

    def _tell_mean(self, point: Point) -> None:
        if not all(point.values.values()):
            self._note(point, unmeasured=True)
            self._tell(point, None, TrialState.FAIL)
            return
        columns = list(zip(*point.values.values(), strict=True))
        if len(point.jobs) > 1:
            spread = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
            self._note(point, values={str(place): v for place, v in sorted(point.values.items())}, std=spread)
            self._note(point, seeds=len(point.values))
        self._tell(point, [statistics.fmean(column) for column in columns])

    def _note(self, point: Point, **facts: Any) -> None:
        trial = Trial(self.study, point.trial._trial_id)
        for key, value in facts.items():
            trial.set_user_attr(key, value)

    def _tell(self, point: Point, values: list[float] | None, state: TrialState | None = None) -> None:
        """Close a point; none of its other jobs is started any more."""
        self.study.tell(point.trial.number, values, state)
        del self.open[point.trial.number]

    # The end

    def _conclude(self) -> None:
        if self._error:
            raise self._error
        if self.workers.signum is not None and (self.open or self._asked() < self.target):
            interruption = Interrupted(self.workers.signum)
            self._stopped(interruption)
            raise interruption
        self._report()
        failed = [t for t in self.trials if t.state == TrialState.FAIL and "unmeasured" not in t.user_attrs]
        retried = {trial.user_attrs.get("retry_of") for trial in self.trials}
        failed = [trial for trial in failed if trial.number not in retried]
        if failed:
            message = (
                f"{len(failed)} of {self.target} trials failed, the last: {failed[-1].user_attrs.get('reason')}; "
                f"try them once more with: leyden resume {self.sweep.name} --retry"
            )
            if self._cause is None:
                raise RunError(message)
            self._cause.add_note(message)
            raise self._cause

    def _report(self) -> None:
        """Leave the best point as an experiment, and a page where there is something to see; say where."""
        from leyden.sweep import best

        if not self.sweep.runs():
            return
        written = best.write(self.sweep)
        if len(self.trials) >= PAGE:
            from leyden.sweep import report  # some seconds

            report.write(self.sweep)
        folder = relative_to_cwd(self.sweep.path)
        for trial in self.sweep.best()[:1] if written else ():
            results = "  ".join(f"{o.metric} {v:.4g}" for o, v in zip(self.objectives, trial.values, strict=True))
            put(f"best: trial {trial.number}  {results}  {written[0].name}")
        put(f"sweep: {folder}  (leyden show {shlex.quote(str(folder))})")

    def _stopped(self, interruption: Interrupted) -> None:
        """Say what did not run, and how to go on."""
        done = sum(t.state.is_finished() for t in self.trials)
        complain(f"{interruption}; {done} of {self.target} trials are done: leyden resume {self.sweep.name}")
        unended = (job.number for p in self.open.values() for job in p.jobs if p.place(job) not in p.values)
        rest = [f"job {number}" for number in sorted(unended)]
        num_begun = sum("retry_of" not in trial.user_attrs for trial in self.trials)
        points = self.points[num_begun : self.settings.n_trials]
        rest += [" ".join(self.space.overrides(point)) for point in points]
        if rest:
            complain("did not run to the end: " + "; ".join(rest[:SHOWN]) + (" …" if len(rest) > SHOWN else ""))
