"""`metrics.jsonl`: one JSON object a line, each a set of values at one step. Imports nothing heavy.

A line is `{"step": 40, "epoch": 1, "time": 1770000000.0, "train/loss": 0.25}` and counts once its newline is
there: what a killed process left half written is never read, and cut before the next line is added. Floats
read back bit-equal. NaN and the infinities stand as `NaN`, `Infinity`, `-Infinity`, as in Python's `json`.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO


def append(path: Path, row: dict[str, Any]) -> None:
    """Add `row` as one line, in one write."""
    line = json.dumps(row).encode() + b"\n"
    with path.open("ab+") as file:
        _cut_torn_line(file)
        file.write(line)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of `path` in the order they were written; none when there is no file yet."""
    return [json.loads(line) for line in _whole_lines(path)]


def truncate(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and of the test that follows training, for they will be written again.

    A reader sees the old file or the new one.
    """
    if not path.exists():
        return
    rows = [(line, json.loads(line)) for line in _whole_lines(path)]
    kept = [line for line, row in rows if row["step"] <= step and not any(name.startswith("test/") for name in row)]
    partial = path.with_name(path.name + ".tmp")
    with partial.open("wb") as file:
        file.write(b"".join(kept))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _cut_torn_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
