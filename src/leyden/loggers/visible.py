"""The lines of a long `metrics.jsonl` that a plot can show: the extremes of each series in every chunk of lines.

Parsing a million lines takes 15 seconds. Here numpy reads the numbers to select lines, and only these are parsed as
JSON.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from leyden.console import complain
from leyden.loggers.metrics_file import parse, read_metrics

MAX_SMALL_SIZE = 8 << 20  # bytes; every line of a file up to this size is parsed
NUM_CHUNKS = 300  # of a long file; a plot is hardly wider than this many points
SERIES = re.compile(rb'"(?:train|val|test)/[^"]*": ')  # the keys of the series that plots show
MAX_WIDTH = 25  # characters of the longest float64
COMMA, NEWLINE, BEGIN, END = b",\n{}"


def read_visible(path: Path) -> list[dict[str, Any]]:
    """Return, in order, the rows of a file that a plot can show; all rows of a small file."""
    if not path.exists() or path.stat().st_size <= MAX_SMALL_SIZE:
        return read_metrics(path)
    rows = [parse(line) for chunk in _chunks(path) for line in _lines_to_plot(chunk)]
    if num_damaged := rows.count(None):
        complain(f"{path} is damaged: skipped {num_damaged} of the lines that are shown")
    return [row for row in rows if row is not None]


def _chunks(path: Path) -> Iterator[bytes]:
    """Split a file into chunks of about equal length and of whole lines."""
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size // NUM_CHUNKS
        while chunk := file.read(length) + file.readline():
            yield chunk[: chunk.rfind(b"\n") + 1]  # a killed process may have left the last line unfinished


def _lines_to_plot(chunk: bytes) -> list[bytes]:
    """Select the first and the last line, those with an extreme or a NaN of a series, and damaged ones."""
    padded = np.frombuffer(chunk + bytes(MAX_WIDTH), np.uint8)  # padding lets a window begin at every byte
    separators = np.flatnonzero((padded == COMMA) | (padded == END))
    line_ends = np.flatnonzero(padded == NEWLINE) + 1
    if not len(line_ends):
        return []
    line_starts = np.concatenate([[0], line_ends[:-1]])
    is_damaged = (padded[line_starts] != BEGIN) | (padded[line_ends - 2] != END)
    selected_lines = {0, len(line_ends) - 1, *np.flatnonzero(is_damaged).tolist()}
    for name in set(SERIES.findall(chunk)):
        begins = np.array([match.end() for match in re.finditer(re.escape(name), chunk)])
        ends = separators[np.minimum(np.searchsorted(separators, begins), len(separators) - 1)]
        values = _parse_numbers(padded, begins, ends)
        is_finite = np.isfinite(values)
        lowest, highest = np.where(is_finite, values, np.inf).argmin(), np.where(is_finite, values, -np.inf).argmax()
        positions = begins[[lowest, highest, is_finite.argmin()]]
        selected_lines |= set(np.searchsorted(line_ends, positions, side="right").tolist())
    return [chunk[line_starts[line] : line_ends[line]] for line in sorted(selected_lines)]


def _parse_numbers(padded: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Parse the numbers at the positions `begins` to `ends` of a chunk, (n,) each; NaN for other values."""
    windows = np.lib.stride_tricks.sliding_window_view(padded, MAX_WIDTH)[begins]
    windows[np.arange(MAX_WIDTH) >= (ends - begins)[:, None]] = 0
    try:
        return windows.view(f"S{MAX_WIDTH}")[:, 0].astype(float)
    except ValueError:  # one of the values is damaged, or is not a number
        return np.full(len(begins), np.nan)
