"""The .ts files of the UCR, UEA and TSER archives: series of one or more dimensions and of unequal length.

Comments (`#`) and headers (`@key value`) are followed by `@data` and one example per line: its dimensions separated by
`:`, the values of each by `,`, and its class or number at the end (Löning et al. 2019, sktime's format; Tan et al. 2021
for numbers).
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from leyden.errors import UserError
from leyden.preparation.lines import decode_utf8


class TsFile(NamedTuple):
    """The content of a .ts file."""

    series: list[np.ndarray]  # (T, F) float32 each
    labels: np.ndarray  # (N,) int64, indices of `classes`, or float64 if the file holds numbers
    classes: list[str]  # empty if the file holds numbers


def read_ts(path: Path) -> TsFile:
    """Read a file with a class or a number for each series.

    Raises:
        UserError: if the file is missing, has another format, or holds a value that is not a number; the message
            names the line.
    """
    headers, start, lines = _read_headers(path)
    classes = _parse_classes(path, headers)
    label_of = {name: k for k, name in enumerate(classes)}
    series, labels = [], []
    for n, line in enumerate(lines[start:], start + 1):
        if not line.strip() or line.startswith("#"):
            continue
        body, _, cell = line.strip().rpartition(":")
        label = label_of.get(cell.strip()) if classes else _parse_number(cell)
        if label is None:
            reason = f"is none of @classLabel {' '.join(classes)}" if classes else "is not a finite number"
            raise UserError(f"{path}, line {n}: the {'class' if classes else 'target'} {cell.strip()!r} {reason}")
        values = _parse_values(f"{path}, line {n}", body)
        if series and values.shape[1] != series[0].shape[1]:
            raise UserError(
                f"{path}, line {n}: {values.shape[1]} dimensions, but the lines before have {series[0].shape[1]}"
            )
        series.append(values)
        labels.append(label)
    if not series:
        raise UserError(f"{path} has no example after @data")
    return TsFile(series, np.array(labels, np.int64 if classes else np.float64), classes)


def read_classes(path: Path) -> list[str]:
    """Read the names of the classes, from the headers only; there are none if the file holds numbers."""
    return _parse_classes(path, _read_headers(path)[0])


def _read_headers(path: Path) -> tuple[dict[str, str], int, list[str]]:
    """Return the headers, the index of the first line of examples, and all lines."""
    try:
        lines = decode_utf8(path.read_bytes(), path).splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    headers: dict[str, str] = {}
    for n, line in enumerate(lines, 1):
        if line.startswith("@"):
            key, _, value = line[1:].strip().partition(" ")
            headers[key.lower()] = value.strip()
            if key.lower() == "data":
                return headers, n, lines
        elif line.strip() and not line.startswith("#"):
            break
    raise UserError(f"{path} has no line @data: it is not a .ts file")


def _parse_classes(path: Path, headers: dict[str, str]) -> list[str]:
    if headers.get("timestamps", "false").lower() == "true":
        raise UserError(f"{path} has @timeStamps true: only values at equal distances can be read")
    if headers.get("targetlabel", "false").lower() == "true":
        return []
    class_flag, *classes = headers.get("classlabel", "false").split()
    if class_flag.lower() != "true" or len(classes) < 2:
        raise UserError(
            f"{path} names no classes: it needs a header such as @classLabel true a b, or @targetLabel true for numbers"
        )
    return classes


def _parse_number(cell: str) -> float | None:
    """Return a finite number, or None."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _parse_values(location: str, body: str) -> np.ndarray:
    """Parse the dimensions of one example, which have the same length: (T, F)."""
    dimensions = body.split(":")
    lengths = [dimension.count(",") + 1 for dimension in dimensions]
    if len(set(lengths)) > 1:
        raise UserError(f"{location}: the dimensions of an example have the lengths {lengths}; they must be equal")
    try:
        values = np.array(body.replace(":", ",").split(","), np.float32).reshape(len(dimensions), -1).T
    except ValueError:
        is_missing = "?" in body or not all(cell.strip() for cell in body.replace(":", ",").split(","))
        reason = "a value is missing: fill it, or leave the example out" if is_missing else "not all values are numbers"
        raise UserError(f"{location}: {reason}") from None
    if not np.isfinite(values).all():
        raise UserError(f"{location}: a value is missing or infinite: mend it, or leave the example out")
    return values
