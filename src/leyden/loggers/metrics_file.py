"""`metrics.jsonl`: one JSON object per line, each with the values of one step. Imports nothing heavy.

A line is `{"step": 40, "epoch": 1, "time": 1770000000.0, "train/loss": 0.25}`. It is complete only with its newline:
a line that a killed process left unfinished is never read, and is removed before the next line is added. Floats are
read back bit-equal. NaN and the infinities are written as `NaN`, `Infinity`, `-Infinity`, as Python's `json` does.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from leyden.console import complain
from leyden.files import write_atomically

LINE_START = b'{"step":'  # every line begins with it
STEP = re.compile(rb'\{"step": (\d+)[,}]')


def append(path: Path, row: dict[str, Any]) -> None:
    """Add `row` as one line, with a single write."""
    line = json.dumps(row).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            remove_unfinished_line(file)
            file.write(line)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # on a full disk, the error names no file


def read_metrics(path: Path, name: str | None = None, step: int | None = None) -> list[dict[str, Any]]:
    """Return the rows of `path` in the order in which they were written; an empty list if there is no file yet.

    With `name` or `step`, only the lines that hold it are parsed, which takes 10 µs each. Damaged lines are skipped and
    reported.
    """
    quoted_name = b"" if name is None else json.dumps(name).encode()
    step_pattern = None if step is None else re.compile(rb'"step":\s*%d\b' % step)
    rows, damaged_lines = [], []
    for number, line in enumerate(_whole_lines(path), 1):
        if quoted_name in line and (step_pattern is None or step_pattern.search(line)):
            row = parse(line)
            (damaged_lines if row is None else rows).append(number if row is None else row)
    if damaged_lines:
        complain(f"{path} is damaged at line {damaged_lines[0]}: skipped {len(damaged_lines)} damaged line(s)")
    return rows


def parse(line: bytes) -> dict[str, Any] | None:
    """Return the values of a line; None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def problem(path: Path, size: int) -> str | None:
    """Return what is wrong with a file that had `size` bytes when a checkpoint was taken, or None."""
    try:
        with path.open("rb") as file:
            start = file.read(size)
    except FileNotFoundError:
        return "is missing" if size else None
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    complete_lines, newline, unfinished_line = start.rpartition(b"\n")
    last_step = 0
    for number, line in enumerate((complete_lines + newline).splitlines(keepends=True), 1):
        step = _step_of(line)
        if step is None:
            return f"is damaged at line {number}"
        last_step = step
    if unfinished_line and not _is_line_start(unfinished_line):
        return f"is damaged after step {last_step}"
    return f"is missing values logged after step {last_step}" if unfinished_line or len(start) < size else None


def truncate(path: Path, step: int) -> None:
    """Drop damaged lines, the lines after `step`, and the lines of the test, which comes after all steps.

    A concurrent reader sees the old file or the new one.
    """
    if not path.exists():
        return
    lines = []
    for line in _whole_lines(path):
        line_step = _step_of(line)
        if line_step is not None and line_step <= step and b'"test/' not in line:
            lines.append(line)
    write_atomically(path, b"".join(lines))


def remove_unfinished_line(file: BinaryIO) -> None:
    """Remove the bytes after the last newline of a file, which a killed process left, and seek to its end."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def _is_line_start(line: bytes) -> bool:
    """Return whether the bytes after the last newline are the beginning of a line."""
    return line.startswith(LINE_START) or LINE_START.startswith(line)


def _step_of(line: bytes) -> int | None:
    """Read the step of a line, None if it is damaged. `Record` writes the step first, so most lines need no parsing."""
    match = STEP.match(line)
    if match and line.endswith(b"}\n") and line.isascii() and b"\0" not in line:
        return int(match[1])
    row = parse(line)
    return None if row is None else row["step"]


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines, except a last one that a killed process left unfinished."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") or not _is_line_start(line):
                    yield line
    except FileNotFoundError:
        return
    except OSError as error:
        complain(f"{path} cannot be read ({error.strerror}): read as if it were empty")
