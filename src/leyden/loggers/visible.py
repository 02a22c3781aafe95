"""The lines of a long `metrics.jsonl` that a plot can show: the extremes of each series in every chunk of lines.

Parsing a million lines takes 15 seconds. Here numpy reads their numbers to select lines, and only these are parsed as
JSON. Lines whose fields differ from those of similar lines are always selected.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leyden.console import complain
from leyden.loggers.metrics_file import parse, read_metrics

SMALL = 8 << 20  # bytes; every line of a smaller file is parsed
CHUNKS = 300  # in a long file; a plot has few more columns of points
STAGES = (b"train/", b"val/", b"test/")  # of the series that plots show
WIDEST = 25  # characters of the longest float64
COMMA, NEWLINE, BRACE = b",\n}"
NUMBER_STARTS = list(b"-0123456789")


def read_visible(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that a plot can show, in their order; all rows of a small file."""
    if not path.exists() or path.stat().st_size <= SMALL:
        return read_metrics(path)
    rows = [parse(line) for chunk in _chunks(path) for line in _lines_to_plot(chunk)]
    if damaged := rows.count(None):
        complain(f"{path} is damaged: skipped {damaged} of the lines that are shown")
    return [row for row in rows if row is not None]


def _chunks(path: Path) -> Iterator[bytes]:
    """Split a file into chunks of about equal length and of whole lines."""
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size // CHUNKS
        while chunk := file.read(length) + file.readline():
            yield chunk[: chunk.rfind(b"\n") + 1]  # a line that a killed process left unfinished does not count


def _lines_to_plot(chunk: bytes) -> list[bytes]:
    """Select the first and the last line, lines with an extreme, and lines whose fields differ from the others'."""
    padded = np.frombuffer(chunk + bytes(WIDEST), np.uint8)  # so that a window can begin at every byte
    separators = np.flatnonzero((padded == COMMA) | (padded == NEWLINE))
    last = np.flatnonzero(padded[separators] == NEWLINE)  # the index of each line's last separator
    if not len(last):
        return []
    stops = separators[last] + 1
    starts = np.concatenate([[0], stops[:-1]])
    counts = np.diff(last, prepend=-1)  # the number of fields in each line
    selected = {0, len(last) - 1}
    for count in np.unique(counts):
        lines = np.flatnonzero(counts == count)
        first = chunk[starts[lines[0]] : stops[lines[0]]]
        names = [text.partition(b":")[0] + b": " for text in first.split(b",")]
        ends = separators[last[lines] - count + np.arange(1, count + 1)[:, None]]  # (fields, lines)
        begins = np.concatenate([starts[lines][None], ends[:-1] + 1])
        columns = [
            _Column(name, begins[n], ends[n]) for n, name in enumerate(names) if name.lstrip(b' {"').startswith(STAGES)
        ]
        has_names = np.ones(len(lines), bool)
        for column in columns:
            has_names &= column.is_named(chunk)
        selected |= set(lines[~has_names].tolist())
        if columns and has_names.any():
            begins = np.stack([column.begins + len(column.name) for column in columns])[:, has_names]
            ends = np.stack([column.ends for column in columns])[:, has_names]
            values = _numbers(padded, begins.ravel(), ends.ravel()).reshape(begins.shape)
            selected |= {int(lines[has_names][n]) for n in _extremes(values)}
    return [chunk[starts[line] : stops[line]] for line in sorted(selected)]


class _Column(NamedTuple):
    """A field of lines that have equally many: its name in the first line, and where it begins and ends in each."""

    name: bytes  # with quotes, colon and blanks
    begins: np.ndarray
    ends: np.ndarray

    def is_named(self, chunk: bytes) -> np.ndarray:
        """Return a mask of the lines that have the name here; eight characters are compared at a time."""
        words = np.ndarray((len(chunk) - 7,), "<u8", chunk, strides=(1,))
        places = [*range(0, len(self.name) - 8, 8), len(self.name) - 8]
        expected = [int.from_bytes(self.name[place : place + 8], "little") for place in places]
        begins = np.minimum(self.begins, len(words) - len(self.name))
        return np.all([words[begins + place] == word for place, word in zip(places, expected, strict=True)], axis=0)


def _extremes(values: np.ndarray) -> set[int]:
    """Return the lines with the smallest and the largest value of each series (series, lines), and one with a NaN."""
    not_finite = np.isnan(values)
    least, largest = np.where(not_finite, np.inf, values).argmin(1), np.where(not_finite, -np.inf, values).argmax(1)
    return {*least.tolist(), *largest.tolist(), *not_finite.argmax(1).tolist()}


def _numbers(padded: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the numbers between two places of a chunk; NaN for what is not a finite number."""
    lengths = ends - begins - (padded[ends - 1] == BRACE)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WIDEST)[begins]
    windows[np.arange(WIDEST) >= lengths[:, None]] = 0
    windows[~np.isin(windows[:, 0], NUMBER_STARTS)] = np.frombuffer(b"nan".ljust(WIDEST, b"\0"), np.uint8)
    try:
        values = windows.view(f"S{WIDEST}")[:, 0].astype(float)
    except ValueError:  # a damaged number; all lines of this form are then treated alike
        return np.full(len(begins), np.nan)
    return np.where(np.isfinite(values), values, np.nan)
