"""Texts in files: plain text files, and tables with a column of texts."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from leyden.errors import UserError, nearest
from leyden.preparation.lines import decode_utf8, read_lines

COLUMN = "text"
TABLES = (".jsonl", ".csv", ".parquet")


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        UserError: if it cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return decode_utf8(content, path)


def read_rows(path: Path, column: str = COLUMN) -> Iterator[tuple[str, str | UserError]]:
    """Yield the name, `file:line` or `file[row]`, and the text of each row of a .jsonl, .csv or .parquet file.

    For a row without a text, a UserError is yielded instead.

    Raises:
        UserError: if the file cannot be read, or has no such column.
    """
    for name, value in read_cells(path, column):
        if isinstance(value, str | UserError):
            yield name, value
        else:
            yield name, UserError(f"{name}: {column} is {json.dumps(value, default=str)[:80]}, not a text")


def read_cells(path: Path, column: str) -> Iterator[tuple[str, object]]:
    """Yield the name of each row of a table and its value in a column, which is a UserError for an invalid row.

    Raises:
        UserError: if the file cannot be read, or has no such column.
    """
    return {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}[path.suffix.lower()](path, column)


def _json_rows(path: Path, column: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(read_lines(path), 1):
        name = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            yield name, UserError(f"{name} is not JSON: {line[:60]!r}")
            continue
        if isinstance(row, str):
            yield name, row
        elif not isinstance(row, dict) or column not in row:
            suggestion = nearest(column, row) if isinstance(row, dict) else ""
            yield name, UserError(f"{name} has no field {column!r}{suggestion}")
        else:
            yield name, row[column]


def _csv_rows(path: Path, column: str) -> Iterator[tuple[str, object]]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        _check_column(path, column, list(reader.fieldnames or ()))
        for number, row in enumerate(reader):
            yield f"{path}[{number}]", row[column]
    except csv.Error as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _parquet_rows(path: Path, column: str) -> Iterator[tuple[str, object]]:
    from leyden.preparation.clocked_table import read_frame

    frame = read_frame(path)
    _check_column(path, column, frame.columns)
    for number, value in enumerate(frame[column]):
        yield f"{path}[{number}]", value


def _check_column(path: Path, column: str, columns: list[str]) -> None:
    if column not in columns:
        raise UserError(f"{path} has no column {column!r}{nearest(column, columns)}")
