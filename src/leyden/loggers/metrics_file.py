"""`metrics.jsonl`: one JSON object a line, each a set of values at one step. Imports nothing heavy.

A line is `{"step": 40, "epoch": 1, "time": 1770000000.0, "train/loss": 0.25}` and counts once its newline is
there: what a killed process left half written is never read, and cut before the next line is added. Floats
read back bit-equal. NaN and the infinities stand as `NaN`, `Infinity`, `-Infinity`, as in Python's `json`.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from leyden.console import complain

BEGINNING = b'{"step":'  # of every line


def append(path: Path, row: dict[str, Any]) -> None:
    """Add `row` as one line, in one write."""
    line = json.dumps(row).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            _cut_torn_line(file)
            file.write(line)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of `path` in the order they were written; none when there is no file yet.

    Damaged lines are left out, and said.
    """
    return [row for _, row in _parsed(path)]


def parse(line: bytes) -> dict[str, Any] | None:
    """Return the values of a line; None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def problem(path: Path, size: int) -> str | None:
    """Say how a file falls short that once had `size` bytes, to which others were added."""
    try:
        begun = path.read_bytes()[:size]
    except FileNotFoundError:
        return "is missing" if size else None
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    whole, newline, torn = begun.rpartition(b"\n")
    rows = [parse(line) for line in (whole + newline).splitlines()]
    if None in rows or (torn and not torn.startswith(BEGINNING)):
        return f"is damaged at line {[*rows, None].index(None) + 1}"
    last = rows[-1]["step"] if rows and rows[-1] else 0
    return f"has lost values after step {last}" if torn or len(begun) < size else None


def truncate(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and of the test that follows training, for they will be written again.

    A reader sees the old file or the new one.
    """
    if not path.exists():
        return
    kept = [
        line for line, row in _parsed(path) if row["step"] <= step and not any(name.startswith("test/") for name in row)
    ]
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        file.write(b"".join(kept))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _parsed(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return the whole lines with their values; say which are damaged."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        complain(f"{path} cannot be read ({error.strerror}): read as if it were empty")
        return []
    if lines and not lines[-1].endswith(b"\n") and lines[-1].startswith(BEGINNING):
        lines.pop()  # what a killed process left half written
    rows = [(line, parse(line)) for line in lines]
    damaged = [number for number, (_, row) in enumerate(rows, 1) if row is None]
    if damaged:
        complain(f"{path} is damaged at line {damaged[0]}: {len(damaged)} of {len(rows)} lines are left out")
    return [(line, row) for line, row in rows if row is not None]


def _cut_torn_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
