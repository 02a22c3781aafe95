"""`leyden predict RUN FILE…`: predict pictures, sequences, texts or series in files with a run's model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from leyden.commands.arguments import Arguments
from leyden.console import complain, console, escaped_text, put
from leyden.distributed.signals import Interrupted, Stop
from leyden.distributed.world import World, detect_world
from leyden.errors import UserError
from leyden.evaluation.answer_file import check_out, predict_to_file, summarize_remarks
from leyden.launch.start import roster
from leyden.run.directory import SCHEMA_FILE, Run
from leyden.run.find import find_checkpoint, find_run
from leyden.run.summary import wide_console
from leyden.schema.schema import Schema

MAX_LINES = 20  # printed problems, and printed remarks


def main(arguments: list[str]) -> int:
    """Print the predictions for each file, or write them to a file; at the end, say which files cannot be read."""
    parser = Arguments(
        "predict",
        "Predict for files, or for all files of folders, read as the run's data set reads them: a class for pictures "
        "and sequences, a translation for each line, the values after a series' end, the likelihood of a text.",
    )
    parser.add_run()
    parser.add_argument("files", nargs="+", metavar="FILE|DIR", type=Path)
    parser.add_checkpoint()
    parser.add_argument("--json", action="store_true", help="one JSON object per line, with every value")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help=".parquet, .jsonl or .csv; the same command resumes it if it is killed"
    )
    options = parser.parse_intermixed_args(arguments)
    run = find_run(options.run)
    if not run.config["data"]:
        raise UserError(f"{run.name} cannot predict: with data=none there is no data module whose schema reads files")
    if missing_paths := [path for path in options.files if not path.exists()]:
        raise UserError("\n".join(f"{path} does not exist" for path in missing_paths))
    find_checkpoint(run, options.checkpoint)
    world = detect_world()
    if options.out:
        check_out(options.out)
    elif world and world.size > 1:
        raise UserError(f"{world.size} ranks cannot print one table: name a file with --out")
    _check_samples(run, options.files)
    if options.out:
        return _write_predictions(run, options.files, options.out, options.checkpoint)
    return _print_predictions(run, options.files, options.checkpoint, options.json)


def _check_samples(run: Run, files: list[Path]) -> None:
    """Refuse files without a sample that can be read, before the model is loaded; many of them are not tried.

    Raises:
        UserError: one line for each sample.
    """
    try:
        schema = Schema.restore(json.loads((run.path / SCHEMA_FILE).read_bytes()))
    except (ValueError, OSError):  # the schema in the checkpoint decides
        return
    problems: list[str] = []
    for samples in islice(schema.read(files, size=1), MAX_LINES + 1):
        if samples.names:
            return
        problems += samples.problems
    if len(problems) <= MAX_LINES:
        raise UserError("\n".join(problems))


def _print_predictions(run: Run, files: list[Path], checkpoint: str | None, as_json: bool) -> int:
    problems: list[str] = []
    remarks: list[str] = []
    table = Table(box=None, header_style="dim")
    with Stop():
        from leyden.evaluation.predict import predict  # loads torch, which takes seconds

        for row in predict(run, files, checkpoint, problems, remarks):
            answer = {key: value for key, value in row.items() if key not in ("name", "sample")}
            if as_json:
                print(json.dumps({"file": row["name"], **answer}), flush=True)
            elif len(answer) == 1 and isinstance(text := next(iter(answer.values())), str):
                put(text)  # plain text, for pipes to other programs
            else:
                _add_row(table, row["name"], answer)
    if table.row_count:
        wide_console().print(table)
    _print_remarks(remarks)
    if problems:
        raise UserError("\n".join(problems))
    return 0


def _write_predictions(run: Run, files: list[Path], out: Path, checkpoint: str | None) -> int:
    world = detect_world()
    try:
        with Stop(), _show_count(world) as progress:
            from leyden.evaluation.predict import Predictor  # loads torch, which takes seconds

            await_others = roster(world).await_shares if world and world.size > 1 else None
            predictor = Predictor(run, checkpoint, world)
            problems, remarks = predict_to_file(predictor, files, out, world, progress, await_others)
    except Interrupted as interruption:
        complain(f"{interruption}; the same command resumes")
        raise
    if world and world.rank:
        return 0
    _print_remarks(remarks)
    if out.exists():
        put(f"answers: {out}")
    if problems:
        more_lines = [f"… and {len(problems) - MAX_LINES} more"] if len(problems) > MAX_LINES else []
        raise UserError("\n".join([*problems[:MAX_LINES], *more_lines]))
    return 0


def _print_remarks(remarks: list[str]) -> None:
    for line in summarize_remarks(remarks)[:MAX_LINES]:
        complain(line)


@contextmanager
def _show_count(world: World | None) -> Iterator[Any]:
    """On a terminal, show how many samples all ranks together have predicted; yield the function that updates it."""
    is_hidden = not console.is_terminal or (world is not None and world.rank > 0)
    columns = (TextColumn("{task.completed:,.0f} samples"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as bar:
        task = bar.add_task("", total=None)
        yield lambda count: bar.update(task, completed=count)


def _add_row(table: Table, name: str, prediction: dict[str, Any]) -> None:
    """Add a row of the scalar values; only --json prints lists and dicts."""
    scalars = {key: value for key, value in prediction.items() if not isinstance(value, dict | list)}
    if not table.columns:
        table.add_column("file", overflow="fold")
        for key in scalars:
            table.add_column(key)
    cells = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in scalars.values()]
    table.add_row(escaped_text(name), *map(escaped_text, cells))
