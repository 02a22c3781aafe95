"""`leyden show RUN|SWEEP`: a run's origin, config and results, or a sweep's trials; needs no torch."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from leyden.commands.arguments import Arguments
from leyden.config.compose import compose
from leyden.config.composition import leaves, unused_parts
from leyden.config.locations import relative_to_cwd
from leyden.console import console, escaped, escaped_text, put
from leyden.errors import UserError, os_error_message
from leyden.figures.terminal import plot
from leyden.launch import slurm
from leyden.loggers.visible import read_visible
from leyden.run.directory import SCHEMA_FILE, Run, step_of
from leyden.run.find import find_run, find_sweep
from leyden.run.summary import (
    STAGE_COLORS,
    STATE_COLORS,
    duration,
    latest_metrics,
    main_metric,
    metrics_table,
    metrics_title,
    seconds_worked,
)
from leyden.schema.schema import Schema


def main(arguments: list[str]) -> int:
    """Show a run, and draw its curves into its figures/; or show a sweep, and write its report."""
    parser = Arguments("show", "Show a run: status, origin, config, metrics, curves, files; or a sweep and its trials.")
    parser.add_argument("run", metavar="RUN|SWEEP", help="a path, last, or a unique part of a run's or sweep's name")
    parser.add_argument("--config", action="store_true", help="only the run's whole config, as YAML")
    parser.add_argument("--json", action="store_true", help="for a sweep: one JSON object for each trial")
    options = parser.parse_args(arguments)
    if folder := find_sweep(options.run):
        from leyden.commands import show_sweep  # loads optuna, which takes a third of a second

        return show_sweep.show(folder, options.json)
    if options.json:
        raise UserError(f"--json shows the trials of a sweep, but {options.run} is not a sweep")
    run = find_run(options.run)
    if options.config:
        text = yaml.safe_dump(run.config, sort_keys=False)
        console.print(Syntax(text, "yaml", background_color="default") if console.is_terminal else Text(text), end="")
        return 0
    rows = read_visible(run.path / "metrics.jsonl")
    metrics = latest_metrics(run)
    tables = [metrics_table(metrics, metrics_title(run))] if metrics else []
    for part in (_headline(run), _facts_table(run), *tables, *_plot_curves(rows, metrics, run), "", _files_table(run)):
        console.print(part)
    if rows:
        put(f"curves: {_draw_curves(rows, run)}")
    return 0


def _headline(run: Run) -> Text:
    state, reason = slurm.state_and_reason(run, slurm.queue([run]))
    status = run.status
    text = Text.assemble(escaped_text(run.name, "bold"), "  ", escaped_text(state, STATE_COLORS.get(state, "")))
    for name in ("step", "epoch"):
        if name in status:
            text.append(f"  {name} {status[name]:,}")
    if elapsed := duration(seconds_worked(status)):
        text.append(f"  {elapsed}")
    if "heartbeat" in status:
        text.append(f"  {duration(time.time() - status['heartbeat'])} ago", "dim")
    if reason:
        text.append(f"\n{escaped(reason)}", "red" if state == "failed" else "yellow")
    for verdict in status.get("expect") or []:
        word, color = ("as expected", "green") if verdict["held"] else ("NOT AS EXPECTED", "red")
        text.append(f"\n{word}: {escaped(verdict['text'])}", color)
    return text


def _facts_table(run: Run) -> Table:
    """List the run's origin, and the differences of its config from the defaults."""
    manifest, tags = run.manifest, run.status.get("tags", [])
    git, host = manifest.get("git") or {}, manifest.get("host") or {}
    packages = {"python": manifest.get("python"), "leyden": manifest.get("leyden"), **manifest.get("packages", {})}
    commit = git.get("commit", "")[:12]
    if git.get("dirty"):
        commit += " with changes (source.diff)"
    if git.get("untracked"):
        commit += f" and {len(git['untracked'])} untracked files"
    unused = unused_parts(manifest.get("raw") or {})
    choices = {k: v for k, v in manifest.get("choices", {}).items() if v not in (None, "none") and k not in unused}
    defaults = manifest.get("defaults") or {}
    return _table(
        {
            "tags": " ".join(tags),
            "notes": (manifest.get("raw") or {}).get("notes"),
            "command": manifest.get("command"),
            "made": " ".join(filter(None, (manifest.get("created"), "in", manifest.get("directory")))),
            "parent": "  ".join(f"{relation} of {path}" for relation, path in (manifest.get("parent") or {}).items()),
            "commit": commit,
            "machine": "  ".join(f"{k} {v}" for k, v in host.items()),
            "versions": "  ".join(f"{k} {v}" for k, v in packages.items() if v),
            "choices": "  ".join(f"{k}={_value_text(v)}" for k, v in sorted(choices.items())),
            "defaults": "  ".join(
                f"{'  '.join(f'{k}={_value_text(v)}' for k, v in values.items())} (in {file})"
                for file, values in defaults.items()
            ),
            **_schema_facts(run),
            "changed": "  ".join(f"{k}={_value_text(v)}" for k, v in changed_keys(manifest).items()),
        }
    )


def _schema_facts(run: Run) -> dict[str, str]:
    """Describe a sample and its answer, if the run has begun to train on data with a schema."""
    try:
        schema = Schema.restore(json.loads((run.path / SCHEMA_FILE).read_bytes()))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:  # the schema is damaged, or has a field that the user's project defines
        return {"sample": str(error)}
    return {"sample": schema.input.describe(), "answer": schema.answer.describe()}


def _table(facts: Mapping[str, str | None]) -> Table:
    """Return a table of names and values, without the empty values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            table.add_row(name, escaped_text(value))
    return table


def changed_keys(manifest: dict) -> dict[str, Any]:
    """Return the keys, with values, that differ from the current content of the chosen config files."""
    raw, choices = manifest.get("raw") or {}, manifest.get("choices") or {}
    unused_groups = {"experiment", *unused_parts(raw)}
    overrides = [f"{k}={_value_text(v)}" for k, v in choices.items() if v is not None and k not in unused_groups]
    try:
        defaults = dict(leaves(compose(overrides).raw))
    except UserError:  # a chosen file is gone, or needs more overrides
        return {"overrides": manifest.get("overrides")}
    raw = {k: v for k, v in raw.items() if k not in ("tags", "notes")}  # shown beside the changed keys
    return {k: v for k, v in leaves(raw) if k not in defaults or defaults[k] != v}


def _value_text(value: Any) -> str:
    """Format a value as it is written on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_value_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _plot_curves(rows: list[dict[str, Any]], metrics: dict[str, float], run: Run) -> Iterator[RenderableType]:
    """Plot the loss, and the metric that chooses the best checkpoint, as text."""
    monitor = main_metric(metrics, run.manifest) or ""
    for name in dict.fromkeys(["loss", monitor.partition("/")[2]]):
        lines = {}
        for stage in ("train", "val"):
            # a value that a module logs with on_step and on_epoch has two names
            for key in (f"{stage}/{name}", f"{stage}/{name}_step", f"{stage}/{name}_epoch"):
                points = [(row["step"], row[key]) for row in rows if key in row]
                if len(points) > 1:
                    lines.setdefault(stage, points)
        if lines:
            title = escaped_text(f"\n{name}")
            for stage in lines:
                title.append(f"  {stage}", STAGE_COLORS[stage])
            yield Group(title, plot(lines, STAGE_COLORS))


def _files_table(run: Run) -> Table:
    """List the checkpoints, figures and evaluations."""
    links = {"best": run.best_checkpoint(), "last": (run.path / "checkpoints" / "last.ckpt").resolve()}
    checkpoints = []
    for path in reversed(run.checkpoints()):
        names = [name for name, target in links.items() if target == path]
        checkpoints.append(f"step-{step_of(path)}" + (f" ({', '.join(names)})" if names else ""))
    figures = sorted(str(p.relative_to(run.path / "figures")) for p in (run.path / "figures").rglob("*.png"))
    evaluations = sorted(p.parent.name for p in (run.path / "evaluations").glob("*/metrics.json"))
    names_by_kind = {"checkpoints": checkpoints, "figures": figures, "evaluations": evaluations}
    return _table({"folder": str(run.path)} | {kind: "  ".join(names) for kind, names in names_by_kind.items()})


def _draw_curves(rows: list[dict[str, Any]], run: Run) -> str:
    """Draw all curves into figures/curves.png, unless it is up to date; return its path, or why it failed."""
    path = run.path / "figures" / "curves.png"
    if path.exists() and path.stat().st_mtime_ns >= (run.path / "metrics.jsonl").stat().st_mtime_ns:
        return str(relative_to_cwd(path))
    from leyden.figures import plots  # loads matplotlib

    try:
        path.parent.mkdir(exist_ok=True)
        plots.curves(rows).savefig(path)
    except OSError as error:  # the folder may belong to somebody else
        return f"not drawn: {os_error_message(error)}"
    return str(relative_to_cwd(path))
