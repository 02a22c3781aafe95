"""The display of a running sweep: a table on a terminal, elsewhere a line for each job."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from optuna.trial import FrozenTrial, TrialState
from rich import live
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from leyden.console import Terminal, put
from leyden.run.summary import STATE_COLORS, duration
from leyden.sweep import table
from leyden.sweep.directory import Sweep
from leyden.sweep.jobs import Ending, Job

NUM_BEST_TRIALS = 5
MAX_RUNNING_JOBS = 8  # running jobs in the table


@dataclass
class Overview:
    """A table of a running sweep: its progress, the running jobs, the best trials, the last failure.

    `running_jobs` maps job numbers to jobs; the search keeps it current. The time left is estimated from the trials
    that began after `start`.
    """

    sweep: Sweep
    total: int
    running_jobs: Mapping[int, Job]
    start: datetime = field(default_factory=datetime.now)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the current state of the study."""
        trials, objectives = self.sweep.study.get_trials(deepcopy=False), self.sweep.objectives
        best, names = self.sweep.best_trials(), table.short_names(trials)
        headline = table.headline(self.sweep, trials, self.total, best)
        if seconds_left := table.eta(trials, self.total, self.start):
            headline.append(f"  {duration(seconds_left)} left")
        yield headline
        completed_trials = [
            trial for trial in table.rank_trials(trials, objectives, best) if trial.state == TrialState.COMPLETE
        ]
        state = Text("finished", STATE_COLORS["finished"])
        rows = [
            *self._jobs(trials, names),
            *(table.row_of(t, objectives, names, state) for t in completed_trials[:NUM_BEST_TRIALS]),
        ]
        yield table.TrialTable(table.titles_of(objectives, names, "state"), rows, len(names))
        if len(self.running_jobs) > MAX_RUNNING_JOBS:
            yield Text(f"and {len(self.running_jobs) - MAX_RUNNING_JOBS} more running jobs", "dim")
        if failed_trials := [trial for trial in trials if trial.state == TrialState.FAIL]:
            failure = f"trial {failed_trials[-1].number} failed: {table.reason(failed_trials[-1])}"
            yield Text(failure, "red", no_wrap=True, overflow="ellipsis")

    def _jobs(self, trials: Sequence[FrozenTrial], names: Mapping[str, str]) -> Iterator[list[Text]]:
        for number, job in sorted(self.running_jobs.items())[:MAX_RUNNING_JOBS]:
            trial = trials[self.sweep.trial_of(number)]
            status = job.run.status if job.run else {}
            state = status.get("state", "created")
            progress = [f"{key} {status[key]:,}" for key in ("epoch", "step") if key in status][:1]
            seed_and_fold = self.sweep.jobs[number - self.sweep.job_numbers(trial.number).start]
            text = Text(" ".join([state, *progress, *seed_and_fold]), STATE_COLORS.get(state, ""))
            yield table.row_of(trial, self.sweep.objectives, names, text)


class Live:
    """A context manager that shows a sweep's overview on a terminal, or else prints a line for each job that ends.

    `varied_keys` are the keys of the search space; `is_drawn` is false if the jobs write to the terminal themselves.
    """

    def __init__(self, overview: Overview, varied_keys: set[str], *, is_drawn: bool) -> None:
        self._overview, self._varied_keys = overview, varied_keys
        console = Terminal()
        is_drawn = is_drawn and console.is_terminal
        self._live = live.Live(overview, console=console, auto_refresh=False) if is_drawn else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()  # stop() draws the table once more

    def refresh(self) -> None:
        """Draw the current state of the sweep."""
        if self._live:
            self._live.refresh()

    def report_end(self, job: Job, ending: Ending) -> None:
        """Print how a job ended, unless a live table is shown."""
        if self._live:
            return
        sweep, total = self._overview.sweep, self._overview.total
        trials = sweep.study.get_trials(deepcopy=False)
        trial = trials[sweep.trial_of(job.number)]
        # a run can finish without a value of the objective
        state = "failed" if table.state_of(trial) == "failed" else ending.state
        reason = ending.reason or table.reason(trial)
        values = zip(sweep.objectives, trial.values or (), strict=False)
        results = ", ".join(f"{objective.metric} {table.number_text(value)}" for objective, value in values)
        if results:  # if a trial has several jobs, their mean is known after the last one
            results = f"; trial {trial.number}: {results}" if len(sweep.jobs) > 1 else f", {results}"
        num_ended = sum(trial.state.is_finished() for trial in trials)
        point_overrides = [o for o in job.overrides if o.partition("=")[0].lstrip("+") in self._varied_keys]
        seed_and_fold = job.overrides[len(job.overrides) - len(sweep.jobs[0]) :]
        description = f" ({' '.join([*point_overrides, *seed_and_fold])})" if point_overrides or seed_and_fold else ""
        text = f"job {job.number}{description} {state}{f': {reason}' if reason else ''}"
        put(f"{text}{results}; {num_ended} of {total} trials")
