"""`leyden predict RUN FILE…`: predict pictures, sequences, texts or series in files with a run's model."""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from leyden.commands.arguments import Arguments
from leyden.console import escaped_text, put
from leyden.distributed.signals import Stop
from leyden.errors import UserError
from leyden.run.find import find_run
from leyden.run.summary import wide_console


def main(arguments: list[str]) -> int:
    """Print the predictions for each file, and at the end which files cannot be read."""
    parser = Arguments(
        "predict",
        "Predict for files, read as the run's data set reads them: a class for pictures and sequences, a translation "
        "for each line, the values after a series' end, the likelihood of a text.",
    )
    parser.add_run()
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path)
    parser.add_checkpoint()
    parser.add_argument("--json", action="store_true", help="one JSON object per line, with every value")
    options = parser.parse_intermixed_args(arguments)
    run = find_run(options.run)
    if missing := [path for path in options.files if not path.is_file()]:
        lines = (f"{path} {'is a folder: name its files' if path.is_dir() else 'does not exist'}" for path in missing)
        raise UserError("\n".join(lines))
    unreadable: list[str] = []
    table = Table(box=None, header_style="dim")
    with Stop():
        from leyden.evaluation.predict import predict  # seconds, with torch

        for name, prediction in predict(run, options.files, options.checkpoint, unreadable):
            if options.json:
                print(json.dumps({"file": name, **prediction}), flush=True)
            elif len(prediction) == 1:  # a text, which a pipe can take to another program
                put(next(iter(prediction.values())))
            else:
                _add_row(table, name, prediction)
    if table.row_count:
        wide_console().print(table)
    if unreadable:
        raise UserError("\n".join(unreadable))
    return 0


def _add_row(table: Table, name: str, prediction: dict[str, Any]) -> None:
    """Add a row of the single values; only --json prints lists and dicts."""
    single = {key: value for key, value in prediction.items() if not isinstance(value, dict | list)}
    if not table.columns:
        table.add_column("file", overflow="fold")
        for key in single:
            table.add_column(key)
    cells = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in single.values()]
    table.add_row(escaped_text(name), *map(escaped_text, cells))
