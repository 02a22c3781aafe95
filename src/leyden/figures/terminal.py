"""Line plots in a terminal, in braille characters of 2 x 4 dots."""

import itertools
import math
from collections.abc import Mapping, Sequence

from rich.text import Text

Points = Sequence[tuple[float, float]]
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bit of the dot at [row][column]


def plot(lines: Mapping[str, Points], colors: Mapping[str, str], width: int = 60, height: int = 8) -> Text:
    """Draw lines over a common x axis, later ones on top, with the range of y on the left and the range of x below."""
    finite_points = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in lines.items()}
    xs = [x for points in finite_points.values() for x, _ in points]
    ys = [y for points in finite_points.values() for _, y in points]
    if not xs:
        return Text("  nothing finite to draw")
    left, right, bottom, top = min(xs), max(xs), min(ys), max(ys)
    bits = [[0] * width for _ in range(height)]
    names = [[""] * width for _ in range(height)]
    for name, points in finite_points.items():
        dots = [
            (_dot_index(x, left, right, 2 * width), _dot_index(-y, -top, -bottom, 4 * height))
            for x, y in sorted(points)
        ]
        for column, row in _connect(dots):
            bits[row // 4][column // 2] |= DOTS[row % 4][column % 2]
            names[row // 4][column // 2] = name
    labels = [f"{top:.4g}", *[""] * (height - 2), f"{bottom:.4g}"]
    margin = max(map(len, labels))
    text = Text()
    for label, row_bits, row_names in zip(labels, bits, names, strict=True):
        text.append(f"{label:>{margin}} ", "dim")
        for cell, name in zip(row_bits, row_names, strict=True):
            text.append(chr(0x2800 + cell), colors.get(name, ""))
        text.append("\n")
    first, last = f"{left:g}", f"{right:g}"
    text.append(f"{'':{margin}} {first}{last:>{width - len(first)}}", "dim")
    return text


def _dot_index(value: float, low: float, high: float, num_dots: int) -> int:
    return round((value - low) / (high - low) * (num_dots - 1)) if high > low else num_dots // 2


def _connect(dots: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Connect neighbouring dots with straight lines."""
    line = dots[:1]
    for (x0, y0), (x1, y1) in itertools.pairwise(dots):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        line += [(x0 + round((x1 - x0) * i / steps), y0 + round((y1 - y0) * i / steps)) for i in range(1, steps + 1)]
    return line
