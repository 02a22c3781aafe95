"""Runs and comparisons as HTML for notebooks. All their text is untrusted, so every piece of it is escaped."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

from leyden.comparison.report import Report
from leyden.console import escaped
from leyden.launch import slurm
from leyden.loggers.visible import read_visible
from leyden.run.directory import Run
from leyden.run.summary import (
    DAMAGE,
    STAGE_COLORS,
    duration,
    latest_metrics,
    main_metric,
    metrics_title,
    seconds_worked,
)

STATE_COLORS = {"finished": "#1e8449", "running": "#0072b2", "failed": "#c0392b", "killed": "#c0392b"}
BOX = "display: inline-block; max-width: 60em; padding: .7em 1em; border: 1px solid #8886; border-radius: 6px"
SMALL = "font-size: 90%; opacity: .75; overflow-wrap: anywhere"


def card(run: Run) -> str:
    """Return a run as a card: name, state, results, command and curves."""
    try:
        parts = [_headline(run), *_facts(run)]
    except DAMAGE as error:
        parts = [f"<b>{_text(run.name)}</b> {_state('broken')}", _small(f"{type(error).__name__}: {error}")]
    return f'<div style="{BOX}">' + "".join(f"<div>{part}</div>" for part in parts) + "</div>"


def report(texts: Report) -> str:
    """Return a comparison: its tables, sentences and notes."""
    parts = []
    for grid in texts.grids:
        parts.append(f"<b>{_text(grid.title)}</b>")
        parts.append(_table(grid.header, grid.rows, grid.num_names))
    parts += [f"<p>{_text(sentence)}</p>" for sentence in texts.sentences]
    parts += [_small(note) for note in texts.notes]
    return "".join(f"<div>{part}</div>" for part in parts)


def _headline(run: Run) -> str:
    state, reason = slurm.state_and_reason(run, slurm.queue([run]))
    status = run.status
    counts = [f"{name} {status[name]:,}" for name in ("step", "epoch") if isinstance(status.get(name), int)]
    elapsed = duration(seconds_worked(status))
    line = f"<b>{_text(run.name)}</b> {_state(state)} {_text('  '.join([*counts, elapsed]))}"
    return line + (f"<br>{_small(reason)}" if reason else "")


def _facts(run: Run) -> Iterable[str]:
    metrics, manifest = latest_metrics(run), run.manifest
    for verdict in run.status.get("expect") or []:
        yield _text(f"{'as expected' if verdict['held'] else 'NOT AS EXPECTED'}: {verdict['text']}")
    if metrics:
        yield _small(metrics_title(run))
        yield _metrics_table(metrics)
    if picture := _curves(run, main_metric(metrics, manifest)):
        yield picture
    yield f'<code style="{SMALL}">{_text(manifest.get("command") or "")}</code>'


def _metrics_table(metrics: dict[str, float]) -> str:
    """Return a table with a row for each metric and a column for each stage."""
    stages = list(dict.fromkeys([s for s in STAGE_COLORS if any(n.startswith(f"{s}/") for n in metrics)]))
    names = dict.fromkeys(name.partition("/")[2] for name in metrics if name.partition("/")[0] in stages)
    values = [[metrics.get(f"{stage}/{name}") for stage in stages] for name in names]
    cells = [["" if value is None else f"{value:.4g}" for value in row] for row in values]
    return _table(["", *stages], [[name, *row] for name, row in zip(names, cells, strict=True)], 1)


def _curves(run: Run, monitor: str | None) -> str:
    """Return the curves of the loss and of the main metric as a picture; empty if nothing can be drawn."""
    names = dict.fromkeys(["loss", (monitor or "").partition("/")[2]])
    keys = ["step", *(f"{stage}/{name}" for stage in ("train", "val") for name in names)]
    rows = [{key: row[key] for key in keys if key in row} for row in read_visible(run.path / "metrics.jsonl")]
    rows = [row for row in rows if len(row) > 1 and all(isinstance(value, int | float) for value in row.values())]
    if not rows:
        return ""
    from leyden.figures import plots  # loads matplotlib

    file = io.BytesIO()
    plots.curves(rows).savefig(file, format="png", dpi=80)
    return f'<img alt="curves" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], num_names: int) -> str:
    """Return a table whose first `num_names` columns are names, the others numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        sides = ["left" if column < num_names else "right" for column in range(len(cells))]
        return "".join(
            f'<{tag} style="text-align: {side}">{_text(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{line('th', header)}</tr></thead><tbody>{body}</tbody></table>"


def _state(state: str) -> str:
    return f'<span style="color: {STATE_COLORS.get(state, "#b9770e")}">{_text(state)}</span>'


def _small(text: object) -> str:
    return f'<span style="{SMALL}">{_text(text)}</span>'


def _text(text: object) -> str:
    """Escape untrusted text for HTML, with its control characters."""
    return html.escape(escaped(text))
