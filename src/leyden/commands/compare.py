"""`leyden compare A B …`: compare groups of runs, with confidence intervals and tests; needs no torch."""

from pathlib import Path

from rich.table import Table

from leyden.commands.arguments import Arguments, check_output
from leyden.comparison.answers import compare_samples
from leyden.comparison.groups import Objections, read_groups
from leyden.comparison.measures import choose_metrics
from leyden.comparison.report import Report, report
from leyden.comparison.rows import compare_runs
from leyden.comparison.writers import csv_table, latex, markdown
from leyden.console import escaped_text, put
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.run.summary import wide_console

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
WRITERS = {".md": markdown, ".tex": latex, ".csv": csv_table}


def main(arguments: list[str]) -> int:
    """Print the comparison, and save it to the --save files."""
    parser = Arguments(
        "compare",
        "Compare groups of finished runs with the first: means, intervals, tests, and conclusions. A GROUP is a run, a "
        "folder or glob of runs (cnn_digits: all of that experiment), a part of their names, several of these, joined "
        "by commas, or a sweep, which stands for its best trial (SWEEP:7 for trial 7). NAME=GROUP names it.",
    )
    parser.add_argument("groups", nargs="+", metavar="GROUP")
    parser.add_argument(
        "--metric",
        action="append",
        metavar="NAME[:higher|:lower]",
        help="may be repeated; by default the metric that chooses the best checkpoints, on the test and val splits",
    )
    parser.add_argument(
        "--samples",
        action="store_true",
        help="compare single models by their predictions for each sample of the test split",
    )
    parser.add_argument(
        "--save", action="append", type=Path, metavar="FILE", help=".md, .tex, .csv, .png, .pdf or .svg"
    )
    parser.add_argument("--force", action="store_true", help="turn objections into notes, and compare all the same")
    options = parser.parse_intermixed_args(arguments)
    for path in options.save or []:
        check_output("--save", path, (*WRITERS, *FIGURE_SUFFIXES))
    if options.samples and options.metric:
        raise UserError("--samples compares the accuracy, or the mean squared error of values: leave out --metric")
    objections = Objections(options.force)
    groups = read_groups(options.groups, objections)
    if options.samples:
        comparison = compare_samples(groups, objections)
    else:
        comparison = compare_runs(groups, choose_metrics(options.metric or [], groups, objections), objections)
    result = report(comparison, list(objections.notes))
    show(result)
    for path in options.save or []:
        if (suffix := path.suffix.lower()) in FIGURE_SUFFIXES:
            from leyden.comparison.picture import draw  # loads matplotlib

            draw(comparison, result, path)
        else:
            write_atomically(path, WRITERS[suffix](comparison, result))
        put(f"saved: {path}")
    return 0


def show(report: Report) -> None:
    """Print a report; columns of names are left-aligned, columns of numbers right-aligned."""
    console = wide_console()
    for grid in report.grids:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for column, title in enumerate(grid.header):
            is_left_aligned = column < grid.num_names or title == "test"
            table.add_column(escaped_text(title), justify="left" if is_left_aligned else "right", overflow="fold")
        for row in grid.rows:
            table.add_row(*map(escaped_text, row))
        console.print(escaped_text(grid.title, "bold"))
        console.print(table)
        print()
    for sentence in report.sentences:
        console.print(escaped_text(sentence))
    for note in report.notes:
        console.print(escaped_text(note, "yellow"))
