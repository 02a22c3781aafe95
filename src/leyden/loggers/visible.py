"""The lines of a long `metrics.jsonl` that a plot can show: the extremes of each series in every chunk of lines.

Parsing a million lines takes 15 seconds. Here numpy reads their numbers to about nine digits to select lines, and only
these are parsed exactly. Lines that differ in form from those around them are always selected.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leyden.console import complain
from leyden.loggers.metrics_file import parse, read_metrics

SMALL = 8 << 20  # bytes up to which every line is parsed
CHUNKS = 300  # of a long file; a plot shows hardly more points
STAGES = (b"train/", b"val/", b"test/")  # of the series that plots show
WIDEST = 10  # characters of a number that are read
COMMA, NEWLINE, DOT, MINUS, ZERO, E, BRACE = b",\n.-0e}"


def read_visible(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that a plot can show, in their order; all rows of a small file."""
    if not path.exists() or path.stat().st_size <= SMALL:
        return read_metrics(path)
    rows = [parse(line) for chunk in _chunks(path) for line in _visible(chunk)]
    if damaged := rows.count(None):
        complain(f"{path} is damaged: skipped {damaged} of the lines that are shown")
    return [row for row in rows if row is not None]


def _chunks(path: Path) -> Iterator[bytes]:
    """Split a file into chunks of about equal length and of whole lines."""
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size // CHUNKS
        while chunk := file.read(length) + file.readline():
            yield chunk[: chunk.rfind(b"\n") + 1]  # a line that a killed process left unfinished does not count


def _visible(chunk: bytes) -> list[bytes]:
    """Select the first and the last line, those with an extreme, and those of another form than the others."""
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
            values = _approximate(padded, begins.ravel(), ends.ravel()).reshape(begins.shape)
            selected |= {int(lines[has_names][n]) for n in _extremes(values)}
    return [chunk[starts[line] : stops[line]] for line in sorted(selected)]


class _Column(NamedTuple):
    """A field of lines with equally many: its name in the first of them, and where it begins and ends in each."""

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


def _approximate(padded: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the numbers between two places, as far as their digits are read; NaN if it is no number."""
    ends = ends - (padded[ends - 1] == BRACE)
    negative = padded[begins] == MINUS
    windows = np.lib.stride_tricks.sliding_window_view(padded, WIDEST)[begins + negative]
    value, scale = np.zeros(len(begins)), np.ones(len(begins))
    fraction, is_within = np.zeros(len(begins), bool), np.ones(len(begins), bool)
    for character in np.ascontiguousarray(windows.T):
        digit = character - ZERO  # of what is less than a zero, large
        is_dot = character == DOT
        counts = (digit < 10) & is_within
        is_within = counts | is_dot & is_within
        np.copyto(value, 10 * value + digit, where=counts)
        np.multiply(scale, 10, out=scale, where=counts & fraction)
        fraction |= is_dot
    value = np.where(negative, -value, value) / scale
    for width in (3, 4):  # of exponents, with the sign: 9.5e-05
        for n in np.flatnonzero((padded[ends - width - 1] == E) & (ends - width > begins)):
            value[n] *= 10.0 ** int(padded[ends[n] - width : ends[n]].tobytes())
    value[padded[ends - 1] - ZERO >= 10] = np.nan  # as Infinity
    return value
