"""A comparison as a file: Markdown, LaTeX, CSV."""

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import Any

from leyden.comparison.report import Report
from leyden.comparison.rows import MetricComparison
from leyden.statistics import Difference, Interval

TEX_ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
TEX_ESCAPES |= {"±": r"$\pm$", "…": "--"} | {character: f"\\{character}" for character in "%&_#${}"}


def markdown(comparison: Sequence[MetricComparison], report: Report) -> str:
    """Return a report as Markdown."""
    parts = []
    for grid in report.grids:
        rule = [":--" if column < grid.num_names else "--:" for column in range(len(grid.header))]
        lines = [[cell.replace("|", "\\|") for cell in row] for row in (grid.header, rule, *grid.rows)]
        parts.append(f"**{grid.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts += ["\n".join(f"- {text}" for text in (*report.sentences, *report.notes))]
    return "\n\n".join(parts) + "\n"


def latex(comparison: Sequence[MetricComparison], report: Report) -> str:
    r"""Return a report as LaTeX; the tables need `\usepackage{booktabs}`."""
    parts = []
    for grid in report.grids:
        columns = "l" * grid.num_names + "r" * (len(grid.header) - grid.num_names)
        head, *rows = ("{}" + " & ".join(map(_tex, row)) + r" \\" for row in (grid.header, *grid.rows))
        body = "\n".join([r"\toprule", head, r"\midrule", *rows, r"\bottomrule"])
        parts.append(f"% {grid.title}\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}")
    parts.append("\n".join(f"% {text}" for text in (*report.sentences, *report.notes)))
    return "\n\n".join(parts) + "\n"


def csv_table(comparison: Sequence[MetricComparison], report: Report) -> str:
    """Return the unrounded numbers as CSV: a line for each metric, task and group, each with all notes."""
    lines = [row | {"notes": "; ".join(report.notes)} for row in unrounded(comparison)]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def unrounded(comparison: Sequence[MetricComparison]) -> list[dict[str, Any]]:
    """Return the numbers of a comparison: a row for each metric, task and group; a share lies between 0 and 1."""
    lines = []
    for metric, rows in comparison:
        for row in rows:
            summary, d = row.summary, row.difference or Difference(math.nan, "")
            lines.append(
                {"metric": metric.name, "task": row.task, "group": row.label}
                | {"n": summary.n, "mean": summary.mean, "std": summary.std}
                | _interval_ends("t", summary.interval)
                | _interval_ends("bootstrap", summary.bootstrap)
                | {"difference": d.value if row.difference else None}
                | _interval_ends("difference", d.interval)
                | _interval_ends("difference_bootstrap", d.bootstrap)
                | {"test": d.test, "p": d.p, "p_holm": row.holm, "p_wilcoxon": d.wilcoxon}
                | {"g": None if d.pairs else d.effect, "g_of_pairs": d.effect if d.pairs else None}
            )
    return lines


def _interval_ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    return {f"{name}_low": interval and interval.low, f"{name}_high": interval and interval.high}


def _tex(text: str) -> str:
    """Escape a cell for LaTeX."""
    text = "".join(TEX_ESCAPES.get(character, character) for character in text)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", text)
