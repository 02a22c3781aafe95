"""What a sweep leaves to look at, in its folder: sweep.html, figures/, and its best point as an experiment."""

import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from html import escape
from pathlib import Path
from string import Template

from optuna.trial import FrozenTrial, TrialState

from leyden.commands.summary import duration
from leyden.run import Run, write_atomically
from leyden.sweep import best
from leyden.sweep.directory import Sweep
from leyden.sweep.plots import Plot, plots
from leyden.sweep.space import text_of
from leyden.sweep.table import STATES, number_text, ranked, reason, seconds, short_names, value_texts

PAGE = Path(__file__).with_name("page.html")
DPI = 150
MAX_BEST = 5  # of several objectives
SLICE = 210  # pixels that a slice needs


def write(sweep: Sweep) -> list[Path]:
    """Write, or write again, all that a sweep's trials allow; return the files, the page first."""
    drawn, runs = plots(sweep), sweep.runs()
    files = [_write_page(sweep, runs, drawn), *_write_experiments(sweep, runs)]
    (sweep.path / "figures").mkdir(exist_ok=True)
    for plot in drawn:
        content = io.BytesIO()
        plot.picture().savefig(content, dpi=DPI)
        files.append(sweep.path / "figures" / f"{plot.name}.png")
        write_atomically(files[-1], content.getvalue())
    return files


def _write_experiments(sweep: Sweep, runs: Mapping[int, Run]) -> Iterator[Path]:
    """Write best.yaml, or best-<trial>.yaml for each trial that none surpasses; take away those of before."""
    chosen = [trial for trial in sweep.best() if "same_as" not in trial.user_attrs]
    single = len(sweep.objectives) == 1
    files = {sweep.path / ("best.yaml" if single else f"best-{trial.number}.yaml"): trial for trial in chosen}
    for old in set(sweep.path.glob("best-*.yaml")) - files.keys():
        old.unlink()
    for path, trial in files.items():
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        if run := runs.get(sweep.numbers(trial.number)[0]):
            write_atomically(path, best.experiment(sweep, trial, run, str(shown)))
            yield path


def _write_page(sweep: Sweep, runs: Mapping[int, Run], drawn: Sequence[Plot]) -> Path:
    from plotly.offline import get_plotlyjs

    trials = sweep.study.get_trials(deepcopy=False)
    parts = {
        "name": escape(sweep.name),
        "headline": escape(_headline(sweep, trials)),
        "facts": _pairs(_facts(sweep, trials)),
        "best": "".join(_best(sweep, trial, runs) for trial in ranked(sweep.best(), sweep.objectives, [])[:MAX_BEST]),
        "plots": "".join(map(_card, drawn)),
        "trials": _table(sweep, trials, runs),
        "plotly": get_plotlyjs() if drawn else "",
    }
    path = sweep.path / "sweep.html"
    write_atomically(path, Template(PAGE.read_text()).substitute(parts))
    return path


def _headline(sweep: Sweep, trials: Sequence[FrozenTrial]) -> str:
    counts = {word: sum(STATES[trial.state] == word for trial in trials) for word in STATES.values()}
    told = [f"{count} {word}" for word, count in counts.items() if count]
    return f"{sum(t.state.is_finished() for t in trials)} of {sweep.total} trials: " + ", ".join(told or ["none begun"])


def _facts(sweep: Sweep, trials: Sequence[FrozenTrial]) -> dict[str, str]:
    settings = sweep.settings
    begun = min((trial.datetime_start for trial in trials if trial.datetime_start), default=None)
    ended = max((trial.datetime_complete for trial in trials if trial.datetime_complete), default=None)
    work = sum(filter(None, map(seconds, trials)))
    facts = {
        "objective": ", ".join(f"{objective.direction} {objective.metric}" for objective in sweep.objectives),
        "sampler": f"{_named(settings.sampler)}, seed {settings.seed}",
        "pruner": _named(settings.pruner) if settings.prunes else "",
        "runs a trial": str(len(sweep.jobs)) if len(sweep.jobs) > 1 else "",
        "begun": f"{begun:%Y-%m-%d %H:%M}" if begun else "",
        "took": f"{duration((ended - begun) / timedelta(seconds=1))}; all trials {duration(work)}"
        if begun and ended
        else "",
        "command": shlex.join(["leyden", "train", "-m", *sweep.config.hydra.overrides.task]),
    }
    return {key: value for key, value in facts.items() if value}


def _named(choice: str | dict) -> str:
    return choice if isinstance(choice, str) else str(choice["_target_"]).rpartition(".")[2]


def _best(sweep: Sweep, trial: FrozenTrial, runs: Mapping[int, Run]) -> str:
    """Lay out one of the best trials: its objectives, its point, and how to train it again."""
    values = " · ".join(
        f"{escape(o.metric)} <b>{escape(text)}</b>"
        for o, text in zip(sweep.objectives, value_texts(trial), strict=True)
    )
    point = {key: text_of(value) for key, value in trial.params.items()}
    run = runs.get(sweep.numbers(trial.number)[0])
    name = _link(run, f"Trial {trial.number}")
    code = f"<pre>{escape(best.command(sweep, run))}</pre>" if run else ""
    return f'<div class="best"><p>{name}: {values}</p>{_pairs(point)}{code}</div>'


def _pairs(facts: dict[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.items())
    return f'<table class="pairs">{rows}</table>'


def _card(plot: Plot) -> str:
    figure = plot.page().to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=plot.name,
        default_height=None,
        config={"responsive": True, "displayModeBar": False},
    )
    wide = f' style="min-width: {SLICE * plot.width}px"' if plot.width > 1 else ""
    span = ' class="wide"' if plot.width > 3 else ""
    return f"<section{span}><h2>{escape(plot.title)}</h2><div class=scroll><div{wide}>{figure}</div></div></section>\n"


def _table(sweep: Sweep, trials: Sequence[FrozenTrial], runs: Mapping[int, Run]) -> str:
    """Lay out all trials; a cell's data-v is what it is sorted by."""
    names = short_names(trials)
    titles = ["trial", *(o.metric for o in sweep.objectives), "state", "took", *names.values(), "remark"]
    lines = ["<tr>" + "".join(f"<th>{escape(title)}</th>" for title in titles) + "</tr>"]
    for trial in ranked(trials, sweep.objectives, sweep.best()):
        first = runs.get(sweep.numbers(trial.number)[0])
        state = STATES[trial.state]
        cells = [_cell(trial.number, _link(first, str(trial.number)))]
        done = trial.state == TrialState.COMPLETE
        shown = (
            zip(trial.values or (), value_texts(trial), strict=True) if done else [(None, "")] * len(sweep.objectives)
        )
        cells += [_cell(value, text) for value, text in shown]
        cells += [
            _cell(state, f'<span class="{state}">{state}</span>'),
            _cell(seconds(trial), duration(seconds(trial))),
        ]
        cells += [_cell(trial.params.get(key), escape(number_text(trial.params.get(key)))) for key in names]
        same = trial.user_attrs.get("same_as")
        cells.append(_cell("", escape(reason(trial) or ("" if same is None else f"as trial {same}"))))
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return f"<table id=trials><thead>{lines[0]}</thead><tbody>{''.join(lines[1:])}</tbody></table>"


def _cell(value: object, shown: str) -> str:
    return f'<td data-v="{escape("" if value is None else str(value))}">{shown}</td>'


def _link(run: Run | None, text: str) -> str:
    return f'<a href="{escape(run.path.name)}/">{text}</a>' if run else text
