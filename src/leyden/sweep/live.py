"""The display of a running sweep: a table on a terminal, a line for each job elsewhere."""

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

NUM_BEST = 5
NUM_AT_WORK = 8  # jobs in the table


@dataclass
class Overview:
    """A table of a running sweep: its progress, the jobs at work, the best trials, the last failure.

    `at_work` has the jobs at work by their numbers, as they come and go. The time left is estimated from the trials
    that began after `start`.
    """

    sweep: Sweep
    total: int
    at_work: Mapping[int, Job]
    start: datetime = field(default_factory=datetime.now)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the study as it is now."""
        trials, objectives = self.sweep.study.get_trials(deepcopy=False), self.sweep.objectives
        best, names = self.sweep.best(), table.short_names(trials)
        head = table.headline(self.sweep, trials, self.total, best)
        if seconds_left := table.eta(trials, self.total, self.start):
            head.append(f"  {duration(seconds_left)} left")
        yield head
        completed = [trial for trial in table.ranked(trials, objectives, best) if trial.state == TrialState.COMPLETE]
        state = Text("finished", STATE_COLORS["finished"])
        rows = [*self._jobs(trials, names), *(table.row_of(t, objectives, names, state) for t in completed[:NUM_BEST])]
        yield table.Fitting(table.titles_of(objectives, names, "state"), rows, len(names))
        if len(self.at_work) > NUM_AT_WORK:
            yield Text(f"and {len(self.at_work) - NUM_AT_WORK} more jobs at work", "dim")
        if failed_trials := [trial for trial in trials if trial.state == TrialState.FAIL]:
            last = f"trial {failed_trials[-1].number} failed: {table.reason(failed_trials[-1])}"
            yield Text(last, "red", no_wrap=True, overflow="ellipsis")

    def _jobs(self, trials: Sequence[FrozenTrial], names: Mapping[str, str]) -> Iterator[list[Text]]:
        for number, job in sorted(self.at_work.items())[:NUM_AT_WORK]:
            trial = trials[self.sweep.trial_of(number)]
            status = job.run.status if job.run else {}
            state = status.get("state", "created")
            progress = [f"{key} {status[key]:,}" for key in ("epoch", "step") if key in status][:1]
            seed_and_fold = self.sweep.jobs[number - self.sweep.numbers(trial.number).start]
            text = Text(" ".join([state, *progress, *seed_and_fold]), STATE_COLORS.get(state, ""))
            yield table.row_of(trial, self.sweep.objectives, names, text)


class Live:
    """Shows a sweep's overview on the terminal while in its block, or else prints a line for each job that has ended.

    `varied` are the keys of the search space; `is_drawn` is false where the jobs write to the terminal themselves.
    """

    def __init__(self, overview: Overview, varied: set[str], *, is_drawn: bool) -> None:
        self._overview, self._varied = overview, varied
        console = Terminal()
        is_drawn = is_drawn and console.is_terminal
        self._live = live.Live(overview, console=console, auto_refresh=False) if is_drawn else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()  # draws it once more

    def refresh(self) -> None:
        """Draw the sweep as it is now."""
        if self._live:
            self._live.refresh()

    def report_end(self, job: Job, ending: Ending) -> None:
        """Print how a job ended, where there is no table."""
        if self._live:
            return
        sweep, total = self._overview.sweep, self._overview.total
        trials = sweep.study.get_trials(deepcopy=False)
        trial = trials[sweep.trial_of(job.number)]
        # a run may finish without its objective
        state = "failed" if table.state_of(trial) == "failed" else ending.state
        reason = ending.reason or table.reason(trial)
        values = zip(sweep.objectives, trial.values or (), strict=False)
        results = "".join(f", {objective.metric} {table.number_text(value)}" for objective, value in values)
        num_ended = sum(trial.state.is_finished() for trial in trials)
        point = [o for o in job.overrides if o.partition("=")[0].lstrip("+") in self._varied]
        seed_and_fold = job.overrides[len(job.overrides) - len(sweep.jobs[0]) :]
        description = f" ({' '.join([*point, *seed_and_fold])})" if point or seed_and_fold else ""
        text = f"job {job.number}{description} {state}{f': {reason}' if reason else ''}"
        put(f"{text}{results}; {num_ended} of {total} trials")
