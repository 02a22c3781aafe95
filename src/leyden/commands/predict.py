"""`leyden predict RUN FILE…`: what a run's model says of new files: pictures, sequences, texts, series."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from leyden.commands.arguments import Arguments
from leyden.console import escaped_text, put
from leyden.errors import UserError
from leyden.run.directory import Run
from leyden.run.find import find_run
from leyden.run.summary import wide_console
from leyden.signals import Stop


def main(arguments: list[str]) -> int:
    """Print what is predicted for each file; files that cannot be read are named at the end."""
    parser = Arguments(
        "predict",
        "What a run's best checkpoint says of files as its data set reads them: a class for pictures and sequences, "
        "a translation for each line, the values after a series' end, how likely a text is.",
    )
    parser.add_argument("run", metavar="RUN", help="a path, last, or a unique part of a run's name")
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path)
    parser.add_argument("--checkpoint", metavar="best|last|step-N", help="by default the best, else the last")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with all that is known")
    options = parser.parse_intermixed_args(arguments)
    run = find_run(options.run)
    if missing := [str(path) for path in options.files if not path.is_file()]:
        raise UserError("\n".join(f"{path} {_what(path)}" for path in missing))
    unreadable: list[str] = []
    table = Table(box=None, header_style="dim")
    with Stop():
        for name, said in predict(run, options.checkpoint, options.files, unreadable):
            if options.json:
                print(json.dumps({"file": name, **said}), flush=True)
            elif len(said) == 1:  # a text, ready for the next program
                put(next(iter(said.values())))
            else:
                _add_row(table, name, said)
    if table.row_count:
        wide_console().print(table)
    if unreadable:
        raise UserError("\n".join(unreadable))
    return 0


def predict(
    run: Run, which: str | None, files: list[Path], unreadable: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a name and what is said of it, in the order of the files; a file's fault is added to `unreadable`."""
    import torch  # seconds

    from leyden.evaluation import load

    frozen = run.config
    built = load.load(frozen, load.choose_checkpoint(run, which))
    for part, method, key in zip(built, ("predict", "load_files"), ("model", "data"), strict=True):
        if not hasattr(part, method):
            raise UserError(f"{run.name} cannot predict: {frozen[key]['_target_']} has no method {method}")
    model: Any = built[0].to("cuda" if torch.cuda.is_available() else "cpu")
    data: Any = built[1]
    for path in files:
        try:
            for names, batch in data.load_files([path]):
                yield from zip(names, model.predict(batch), strict=True)
        except UserError as error:
            unreadable.append(str(error))


def _add_row(table: Table, name: str, said: dict[str, Any]) -> None:
    """Show the single values; what is longer is for --json."""
    single = {key: value for key, value in said.items() if not isinstance(value, dict | list)}
    if not table.columns:
        table.add_column("file", overflow="fold")
        for key in single:
            table.add_column(key)
    cells = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in single.values()]
    table.add_row(escaped_text(name), *map(escaped_text, cells))


def _what(path: str) -> str:
    return "is a folder: name its files" if Path(path).is_dir() else "does not exist"
