"""`metrics.jsonl`: one JSON object a line, each a set of values at one step. Imports nothing heavy.

A line is `{"step": 40, "epoch": 1, "time": 1770000000.0, "train/loss": 0.25}` and counts once its newline is
there: what a killed process left half written is never read, and cut before the next line is added. Floats
read back bit-equal. NaN and the infinities stand as `NaN`, `Infinity`, `-Infinity`, as in Python's `json`.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from leyden.console import complain

BEGINNING = b'{"step":'  # of every line
STEP = re.compile(rb'\{"step": (\d+)[,}]')


def append(path: Path, row: dict[str, Any]) -> None:
    """Add `row` as one line, in one write."""
    line = json.dumps(row).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            _cut_torn_line(file)
            file.write(line)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file


def read_metrics(path: Path, name: str | None = None, step: int | None = None) -> list[dict[str, Any]]:
    """Return the lines of `path` in the order they were written; none when there is no file yet.

    With `name` or `step` only the lines that hold it: the others are not parsed, which would take 10 µs each. Damaged
    lines are left out, and said.
    """
    held = b"" if name is None else json.dumps(name).encode()
    of_step = None if step is None else re.compile(rb'"step":\s*%d\b' % step)
    rows, damaged = [], []
    for number, line in enumerate(_whole_lines(path), 1):
        if held in line and (of_step is None or of_step.search(line)):
            row = parse(line)
            (damaged if row is None else rows).append(number if row is None else row)
    if damaged:
        complain(f"{path} is damaged at line {damaged[0]}: skipped {len(damaged)} damaged line(s)")
    return rows


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
        with path.open("rb") as file:
            begun = file.read(size)
    except FileNotFoundError:
        return "is missing" if size else None
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    whole, newline, torn = begun.rpartition(b"\n")
    last = 0
    for number, line in enumerate((whole + newline).splitlines(keepends=True), 1):
        found = _step_of(line)
        if found is None:
            return f"is damaged at line {number}"
        last = found
    if torn and not _begins(torn):
        return f"is damaged after step {last}"
    return f"is missing values logged after step {last}" if torn or len(begun) < size else None


def truncate(path: Path, step: int) -> None:
    """Drop what was logged after `step`, and by `test`, which comes after all steps; damaged lines, too.

    A reader sees the old file or the new one.
    """
    if not path.exists():
        return
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        for line in _whole_lines(path):
            found = _step_of(line)
            if found is not None and found <= step and b'"test/' not in line:
                file.write(line)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _begins(torn: bytes) -> bool:
    """Whether what stands after the last newline is the beginning of a line."""
    return torn.startswith(BEGINNING) or BEGINNING.startswith(torn)


def _step_of(line: bytes) -> int | None:
    """Read a line's step, which `Record` writes first; None if the line is damaged. Most are not parsed for that."""
    found = STEP.match(line)
    if found and line.endswith(b"}\n") and line.isascii() and b"\0" not in line:
        return int(found[1])
    row = parse(line)
    return None if row is None else row["step"]


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines, but for a last one that a killed process left half written."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") or not _begins(line):
                    yield line
    except FileNotFoundError:
        return
    except OSError as error:
        complain(f"{path} cannot be read ({error.strerror}): read as if it were empty")


def _cut_torn_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
