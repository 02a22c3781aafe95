"""What a sweep shows while it runs: a table on a terminal, a line for each job elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from optuna.trial import FrozenTrial, TrialState
from rich import live
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from leyden.console import Terminal, put
from leyden.run.summary import STATE_COLORS, duration
from leyden.sweep.directory import Sweep
from leyden.sweep.jobs import Ending, Job
from leyden.sweep.table import (
    Fitting,
    eta,
    headline,
    number_text,
    ranked,
    reason,
    row_of,
    short_names,
    state_of,
    titles_of,
)

NUM_BEST = 5
NUM_AT_WORK = 8  # jobs shown of those at work


@dataclass
class Overview:
    """A sweep while it runs: its progress, the jobs at work, the best trials, why the last one failed.

    `at_work` has the jobs at work by their numbers, as they come and go. The time left is estimated from the trials
    that began after `start`.
    """

    sweep: Sweep
    total: int
    at_work: Mapping[int, Job]
    start: datetime = field(default_factory=datetime.now)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it as the study is now."""
        trials, objectives = self.sweep.study.get_trials(deepcopy=False), self.sweep.objectives
        best, names = self.sweep.best(), short_names(trials)
        head = headline(self.sweep, trials, self.total, best)
        if seconds_left := eta(trials, self.total, self.start):
            head.append(f"  {duration(seconds_left)} left")
        yield head
        completed = [trial for trial in ranked(trials, objectives, best) if trial.state == TrialState.COMPLETE]
        rows = [*self._jobs(trials, names), *(row_of(trial, objectives, names) for trial in completed[:NUM_BEST])]
        yield Fitting(titles_of(objectives, names), rows, len(names))
        if len(self.at_work) > NUM_AT_WORK:
            yield Text(f"and {len(self.at_work) - NUM_AT_WORK} more jobs at work", "dim")
        if failed_trials := [trial for trial in trials if trial.state == TrialState.FAIL]:
            last = f"trial {failed_trials[-1].number} failed: {reason(failed_trials[-1])}"
            yield Text(last, "red", no_wrap=True, overflow="ellipsis")

    def _jobs(self, trials: Sequence[FrozenTrial], names: Mapping[str, str]) -> Iterator[list[Text]]:
        for number, job in sorted(self.at_work.items())[:NUM_AT_WORK]:
            trial = trials[self.sweep.trial_of(number)]
            status = job.run.status if job.run else {}
            state = status.get("state", "created")
            progress = [f"{key} {status[key]:,}" for key in ("epoch", "step") if key in status][:1]
            seed_and_fold = self.sweep.jobs[number - self.sweep.numbers(trial.number).start]
            text = Text(" ".join([state, *progress, *seed_and_fold]), STATE_COLORS.get(state, ""))
            yield row_of(trial, self.sweep.objectives, names, text)


class Live:
    """Shows a sweep's overview on the terminal while in its block, or else prints a line for each job that has ended.

    `varied` are the keys of the search space; `is_drawn` is false where the jobs write to the terminal themselves.
    """

    def __init__(self, overview: Overview, varied: set[str], *, is_drawn: bool) -> None:
        self._overview, self._varied, self._is_drawn = overview, varied, is_drawn
        self._live: live.Live | None = None

    def __enter__(self) -> "Live":
        console = Terminal()
        if console.is_terminal and self._is_drawn:
            self._live = live.Live(self._overview, console=console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self.refresh()
            self._live.stop()

    def refresh(self) -> None:
        """Draw the sweep as it is now."""
        if self._live:
            self._live.refresh()

    def tell(self, job: Job, ending: Ending) -> None:
        """Say how a job ended."""
        if self._live:
            return
        sweep, total = self._overview.sweep, self._overview.total
        trials = sweep.study.get_trials(deepcopy=False)
        trial = trials[sweep.trial_of(job.number)]
        state = "failed" if state_of(trial) == "failed" else ending.state  # a run may finish without its objective
        why = ending.reason or reason(trial)
        values = [f", {o.metric} {number_text(v)}" for o, v in zip(sweep.objectives, trial.values or (), strict=False)]
        ended = sum(trial.state.is_finished() for trial in trials)
        point = [o for o in job.overrides if o.partition("=")[0].lstrip("+") in self._varied]
        seed_and_fold = job.overrides[len(job.overrides) - len(sweep.jobs[0]) :]
        varies = f" ({' '.join([*point, *seed_and_fold])})" if point or seed_and_fold else ""
        text = f"job {job.number}{varies} {state}{f': {why}' if why else ''}"
        put(f"{text}{''.join(values)}; {ended} of {total} trials")
