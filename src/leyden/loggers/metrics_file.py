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

STEP = re.compile(rb'\{"step": (\d+)[,}]')


def append(path: Path, row: dict[str, Any]) -> None:
    """Add `row` as one line, in one write."""
    line = json.dumps(row).encode() + b"\n"
    with path.open("ab+") as file:
        _cut_torn_line(file)
        file.write(line)


def read_metrics(path: Path, name: str | None = None, step: int | None = None) -> list[dict[str, Any]]:
    """Return the lines of `path` in the order they were written; none when there is no file yet.

    With `name` or `step` only the lines that hold it: the others are not parsed, which would take 10 µs each.
    """
    held = b"" if name is None else json.dumps(name).encode()
    of_step = None if step is None else re.compile(rb'"step":\s*%d\b' % step)
    lines = (line for line in _whole_lines(path) if held in line and (of_step is None or of_step.search(line)))
    return [json.loads(line) for line in lines]


def truncate(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and of the test that follows training, for they will be written again.

    A reader sees the old file or the new one.
    """
    if not path.exists():
        return
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        file.writelines(line for line in _whole_lines(path) if _step_of(line) <= step and b'"test/' not in line)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _step_of(line: bytes) -> int:
    """Read a line's step, which `Record` writes first, without the rest of it."""
    found = STEP.match(line)
    return int(found[1]) if found else json.loads(line)["step"]


def _whole_lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def _cut_torn_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
