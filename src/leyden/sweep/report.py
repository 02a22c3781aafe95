"""The report in a sweep's folder: the page sweep.html, and the best point as an experiment."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

from optuna.trial import FrozenTrial, TrialState

from leyden.files import write_atomically
from leyden.run.directory import Run
from leyden.run.summary import duration
from leyden.sweep import best, table
from leyden.sweep.directory import Sweep
from leyden.sweep.plan import original_arguments
from leyden.sweep.plots import Plot, plots, to_html
from leyden.sweep.space import text_of

PAGE = Path(__file__).with_name("page.html")
MAX_BEST_TRIALS = 5  # Pareto-optimal trials that are shown
SLICE_WIDTH = 210  # pixels


class Snapshot(NamedTuple):
    """The state of a sweep at the start of the report, read once because reading is slow."""

    sweep: Sweep
    trials: Sequence[FrozenTrial]
    best: Sequence[FrozenTrial]
    runs: Mapping[int, Run]
    is_alive: bool

    def run(self, trial: FrozenTrial) -> Run | None:
        """Return the first run of a trial."""
        return self.runs.get(self.sweep.job_numbers(trial.number)[0])


def write(sweep: Sweep) -> list[Path]:
    """Write or overwrite the page and the best points; return their paths, the page first."""
    trials = sweep.study.get_trials(deepcopy=False)
    best_trials = table.rank_trials(sweep.best_trials(), sweep.objectives, [])
    page = _write_page(Snapshot(sweep, trials, best_trials, sweep.runs(), sweep.is_alive), plots(sweep))
    return [page, *best.write(sweep)]


def _write_page(snapshot: Snapshot, all_plots: Sequence[Plot]) -> Path:
    from plotly.offline import get_plotlyjs

    parts = {
        "name": escape(snapshot.sweep.name),
        "headline": escape(_headline(snapshot)),
        "facts": _pairs_table(_facts(snapshot.sweep, snapshot.trials)),
        "best": "".join(_best_trial_html(snapshot, trial) for trial in snapshot.best[:MAX_BEST_TRIALS]),
        "plots": "".join(map(_plot_section, all_plots)),
        "trials": _trials_table(snapshot),
        "plotly": get_plotlyjs() if all_plots else "",
    }
    path = snapshot.sweep.path / "sweep.html"
    write_atomically(path, Template(PAGE.read_text()).substitute(parts))
    return path


def _headline(snapshot: Snapshot) -> str:
    counts = Counter(table.state_of(trial, alive=snapshot.is_alive) for trial in snapshot.trials)
    texts = [f"{counts[word]} {word}" for word in (*table.STATES.values(), "interrupted") if counts[word]]
    num_ended = sum(trial.state.is_finished() for trial in snapshot.trials)
    return f"{num_ended} of {snapshot.sweep.total} trials: " + ", ".join(texts or ["none started"])


def _facts(sweep: Sweep, trials: Sequence[FrozenTrial]) -> dict[str, str]:
    settings = sweep.settings
    start = min((trial.datetime_start for trial in trials if trial.datetime_start), default=None)
    end = max((trial.datetime_complete for trial in trials if trial.datetime_complete), default=None)
    work_time = sum(filter(None, map(table.seconds, trials)))
    facts = {
        "objective": ", ".join(f"{objective.direction} {objective.metric}" for objective in sweep.objectives),
        "sampler": f"{_choice_name(settings.sampler)}, seed {settings.seed}",
        "pruner": _choice_name(settings.pruner) if settings.prunes else "",
        "runs a trial": str(len(sweep.jobs)) if len(sweep.jobs) > 1 else "",
        "started": f"{start:%Y-%m-%d %H:%M}" if start else "",
        "took": f"{duration((end - start).total_seconds())}; all trials {duration(work_time)}" if start and end else "",
        "command": shlex.join(["leyden", "train", "-m", *original_arguments(sweep.config)]),
    }
    return {key: value for key, value in facts.items() if value}


def _choice_name(choice: str | dict) -> str:
    return choice if isinstance(choice, str) else str(choice["_target_"]).rpartition(".")[2]


def _best_trial_html(snapshot: Snapshot, trial: FrozenTrial) -> str:
    """Lay out a best trial: its objectives, its command and, if there is a single objective, its point."""
    run, metrics = snapshot.run(trial), [escape(objective.metric) for objective in snapshot.sweep.objectives]
    values = " · ".join(f"{m} <b>{escape(text)}</b>" for m, text in zip(metrics, table.value_texts(trial), strict=True))
    point = {key: text_of(value) for key, value in trial.params.items()} if len(metrics) == 1 else {}
    code = f"<pre>{escape(best.command(snapshot.sweep, run))}</pre>" if run else ""
    return f'<div class="best"><p>{_link(run, f"Trial {trial.number}")}: {values}</p>{_pairs_table(point)}{code}</div>'


def _pairs_table(facts: dict[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.items())
    return f'<table class="pairs">{rows}</table>'


def _plot_section(plot: Plot) -> str:
    width = f' style="min-width: {SLICE_WIDTH * plot.width}px"' if plot.width > 1 else ""
    span = ' class="wide"' if plot.width > 3 else ""
    figure = f"<div class=scroll><div{width}>{to_html(plot)}</div></div>"
    return f"<section{span}><h2>{escape(plot.title)}</h2>{figure}</section>\n"


def _trials_table(snapshot: Snapshot) -> str:
    """Lay out all trials, the best first."""
    names, objectives = table.short_names(snapshot.trials), snapshot.sweep.objectives
    titles = table.titles_of(objectives, names, "state", "took")
    head = "".join(f"<th>{escape(title)}</th>" for title in [*titles, "remark"])
    rows = [_cells(snapshot, trial, names) for trial in table.rank_trials(snapshot.trials, objectives, snapshot.best)]
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f"<table id=trials><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(snapshot: Snapshot, trial: FrozenTrial, names: Mapping[str, str]) -> Iterator[str]:
    """Yield the cells of a trial's row, which show rounded values and are sorted by exact ones."""
    state, same_as = table.state_of(trial, alive=snapshot.is_alive), trial.user_attrs.get("same_as")
    yield _cell(trial.number, _link(snapshot.run(trial), str(trial.number)))
    is_complete = trial.state == TrialState.COMPLETE
    no_values = [_cell(None, "")] * len(snapshot.sweep.objectives)
    yield from map(_cell, trial.values, table.value_texts(trial)) if is_complete else no_values
    yield _cell(state, f'<span class="{state}">{state}</span>')
    yield _cell(table.seconds(trial), duration(table.seconds(trial)))
    for value in map(trial.params.get, names):
        yield _cell(value, escape(table.number_text(value)))
    yield _cell("", escape(table.reason(trial) or ("" if same_as is None else f"as trial {same_as}")))


def _cell(value: object, html: str) -> str:
    return f'<td data-v="{escape("" if value is None else str(value))}">{html}</td>'


def _link(run: Run | None, text: str) -> str:
    return f'<a href="{escape(run.path.name)}/">{text}</a>' if run else text
