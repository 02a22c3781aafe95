"""`leyden compare A B …`: which group of runs is better, by how much, and whether that can be known; needs no torch."""

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from leyden.commands.arguments import Arguments
from leyden.comparison.answers import compare_samples
from leyden.comparison.groups import Doubts, read
from leyden.comparison.measures import choose
from leyden.comparison.report import Report, report
from leyden.comparison.rows import ALL, Compared, compare_runs
from leyden.comparison.statistics import Difference, Interval
from leyden.console import escaped_text, put
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.run.summary import wide_console

FIGURES = (".png", ".pdf", ".svg")
NUM_THRESHOLDS = 201  # points of a performance profile


def main(arguments: list[str]) -> int:
    """Print what was found, and save it where that was asked for."""
    parser = Arguments(
        "compare",
        "Hold groups of finished runs against the first: means, intervals, tests, and what they say. A GROUP is a run, "
        "a folder or glob of runs (cnn_digits: all of that experiment), a part of their names, several joined by "
        "commas, or a sweep, which stands for its best trial (SWEEP:7: for trial 7). NAME=GROUP names it.",
    )
    parser.add_argument("groups", nargs="+", metavar="GROUP")
    parser.add_argument(
        "--metric",
        action="append",
        metavar="NAME[:higher|:lower]",
        help="once for each; by default what the best checkpoints are chosen by, on the test and validation splits",
    )
    parser.add_argument(
        "--samples", action="store_true", help="single models, by their answers to each sample of the test split"
    )
    parser.add_argument(
        "--save", action="append", type=Path, metavar="FILE", help=".md, .tex, .csv, .png, .pdf or .svg"
    )
    parser.add_argument("--force", action="store_true", help="compare what does not belong together, and say so")
    options = parser.parse_intermixed_args(arguments)
    for path in options.save or []:
        if path.suffix not in (*WRITERS, *FIGURES):
            raise UserError(f"--save {path}: the name must end in one of {', '.join((*WRITERS, *FIGURES))}")
        if not path.parent.is_dir():
            raise UserError(f"--save {path}: there is no folder {path.parent}")
    if options.samples and options.metric:
        raise UserError("--samples goes by accuracy, or by the mean square error of values: leave out --metric")
    doubts = Doubts(options.force)
    named = read(options.groups, doubts)
    if options.samples:
        found = compare_samples(named, doubts)
    else:
        found = compare_runs(named, choose(options.metric or [], named, doubts), doubts)
    said = report(found, list(doubts.notes))
    show(said)
    for path in options.save or []:
        if path.suffix in FIGURES:
            draw(found, said, path)
        else:
            write_atomically(path, WRITERS[path.suffix](found, said))
        put(f"saved: {path}")
    return 0


def show(said: Report) -> None:
    """Print a report."""
    console = wide_console()
    for grid in said.grids:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for place, head in enumerate(grid.header):
            left = place < grid.names or head == "test"
            table.add_column(escaped_text(head), justify="left" if left else "right", overflow="fold")
        for row in grid.rows:
            table.add_row(*map(escaped_text, row))
        console.print(escaped_text(grid.title, "bold"))
        console.print(table)
        print()
    for text in said.words:
        console.print(escaped_text(text))
    for note in said.notes:
        console.print(escaped_text(note, "yellow"))


def markdown(found: Sequence[Compared], said: Report) -> str:
    """Write a report as Markdown."""
    parts = []
    for grid in said.grids:
        rule = [":--" if place < grid.names else "--:" for place in range(len(grid.header))]
        lines = [[cell.replace("|", "\\|") for cell in row] for row in (grid.header, rule, *grid.rows)]
        parts.append(f"**{grid.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts += ["\n".join(f"- {text}" for text in (*said.words, *said.notes))]
    return "\n\n".join(parts) + "\n"


def latex(found: Sequence[Compared], said: Report) -> str:
    r"""Write a report as LaTeX; the tables need `\usepackage{booktabs}`."""
    parts = []
    for grid in said.grids:
        columns = "l" * grid.names + "r" * (len(grid.header) - grid.names)
        head, *rows = ("{}" + " & ".join(map(_tex, row)) + r" \\" for row in (grid.header, *grid.rows))
        body = "\n".join([r"\toprule", head, r"\midrule", *rows, r"\bottomrule"])
        parts.append(f"% {grid.title}\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}")
    parts.append("\n".join(f"% {text}" for text in (*said.words, *said.notes)))
    return "\n\n".join(parts) + "\n"


def table(found: Sequence[Compared], said: Report) -> str:
    """Write the numbers as they are as CSV, a line for each metric, task and group, each with all notes."""
    lines = []
    for metric, rows in found:
        for row in rows:
            of, d = row.summary, row.difference or Difference(math.nan, "")
            lines.append(
                {"metric": metric.name, "task": row.task, "group": row.label, "n": of.n, "mean": of.mean, "std": of.std}
                | _ends("t", of.interval)
                | _ends("bootstrap", of.bootstrap)
                | {"difference": d.value if row.difference else None}
                | _ends("difference", d.interval)
                | _ends("difference_bootstrap", d.bootstrap)
                | {"test": d.test, "p": d.p, "p_holm": row.holm, "p_wilcoxon": d.wilcoxon}
                | {"g": None if d.pairs else d.effect, "g_of_pairs": d.effect if d.pairs else None}
                | {"notes": "; ".join(said.notes)}
            )
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    return {f"{name}_low": interval and interval.low, f"{name}_high": interval and interval.high}


WRITERS = {".md": markdown, ".tex": latex, ".csv": table}


def draw(found: Sequence[Compared], said: Report, path: Path) -> None:
    """Draw every group's runs, mean and interval, the differences, and over many tasks the performance profiles."""
    import numpy as np

    from leyden.comparison import statistics
    from leyden.figures import spreads  # matplotlib

    panels, profiles = [], {}
    for metric, rows in found:
        factor, unit = (100, " (%)") if metric.share else (1, "")
        means, differences = [], []
        for row in rows:
            of, label = row.summary, f"{row.task}: {row.label}" if row.task else row.label
            values = factor * row.values if row.task != ALL else np.empty(0)
            interval = _scaled(of.interval or of.bootstrap, factor)
            means.append(spreads.Spread(row.group, label, values, factor * of.mean, interval))
            if d := row.difference:
                interval = _scaled(d.interval or d.bootstrap, factor)
                differences.append(spreads.Spread(row.group, label, np.empty(0), factor * d.value, interval))
        panels.append(spreads.Panel(metric.name + unit, means))
        if differences:
            points = " (points)" if metric.share else ""
            panels.append(spreads.Panel(f"{metric.name} minus {rows[0].label}{points}", differences, zero=True))
        if any(row.task == ALL for row in rows):
            values = np.concatenate([row.values for row in rows])
            thresholds = np.linspace(values.min(), values.max(), NUM_THRESHOLDS)
            lines = []
            for group in dict.fromkeys(row.group for row in rows):
                own = [row for row in rows if row.group == group and row.task != ALL]
                shares = statistics.profile([row.values for row in own], thresholds, metric.higher)
                lines.append((own[0].label, factor * thresholds, shares))
            profiles[f"runs {'above' if metric.higher else 'below'} {metric.name}{unit}"] = lines
    spreads.comparison(panels, profiles, ["bars: 95 % intervals", *said.notes]).savefig(path)


def _scaled(interval: tuple[float, float] | None, factor: float) -> tuple[float, float] | None:
    return (factor * interval[0], factor * interval[1]) if interval else None


TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
TEX |= {"±": r"$\pm$", "…": "--"} | {character: f"\\{character}" for character in "%&_#${}"}


def _tex(text: str) -> str:
    """Write a cell for LaTeX."""
    text = "".join(TEX.get(character, character) for character in text)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", text)
