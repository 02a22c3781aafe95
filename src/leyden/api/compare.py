"""`leyden.compare`: which group of runs is better, by how much, and how certainly."""

from collections.abc import Iterable, Sequence
from typing import Any

from leyden.api import html
from leyden.api.process import errors_in_one_line
from leyden.api.run import table
from leyden.comparison.groups import Objections, read_groups
from leyden.comparison.measures import choose_metrics
from leyden.comparison.report import Report, report
from leyden.comparison.rows import MetricComparison, compare_runs
from leyden.comparison.writers import markdown, unrounded
from leyden.console import escaped
from leyden.errors import UserError
from leyden.run.directory import Run


class Comparison:
    """A comparison of groups of runs with the first: `sentences` that say what it shows, `notes`, and the numbers."""

    def __init__(self, metrics: list[MetricComparison], texts: Report) -> None:
        self._metrics, self._report = metrics, texts
        self.sentences: list[str] = texts.sentences
        self.notes: list[str] = texts.notes

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The unrounded numbers: a dict for each metric, task and group, with the difference from the first group."""
        return unrounded(self._metrics)

    def table(self) -> Any:
        """Return `rows` as a table of polars, or of pandas if polars is not installed.

        Raises:
            UserError: if neither is installed.
        """
        rows = self.rows
        return table({name: [row[name] for row in rows] for name in rows[0]})

    def __repr__(self) -> str:
        return escaped(markdown(self._metrics, self._report)).rstrip()

    def _repr_html_(self) -> str:
        return html.report(self._report)


def compare(
    *groups: str | Run | Iterable[Run],
    metric: str | Sequence[str] | None = None,
    force: bool = False,
    **named_groups: str | Run | Iterable[Run],
) -> Comparison:
    """Compare groups of finished runs with the first, as `leyden compare` does.

    A group is a run, several runs, or a text as on the command line, such as `SWEEP:7`. A keyword names a group:
    `leyden.compare(narrow=runs_1, wide=runs_2)`. `metric` is `NAME`, `NAME:higher` or `NAME:lower`, by default the
    metric that chooses the best checkpoints; `force` turns objections into notes.

    Raises:
        UserError: if a group has no finished run, or the groups cannot be compared.
    """
    with errors_in_one_line():
        arguments = [_argument(group) for group in groups]
        arguments += [f"{name}={_argument(group)}" for name, group in named_groups.items()]
        if not arguments:
            raise UserError("leyden.compare takes one or more groups of runs: leyden.compare(run_1, run_2)")
        objections = Objections(force)
        members = read_groups(arguments, objections)
        names = [metric] if isinstance(metric, str) else list(metric or [])
        comparisons = compare_runs(members, choose_metrics(names, members, objections), objections)
        return Comparison(comparisons, report(comparisons, list(objections.notes)))


def _argument(group: str | Run | Iterable[Run]) -> str:
    """Return a group as it is written on the command line."""
    if isinstance(group, str):
        return group
    return ",".join(run.name for run in ([group] if isinstance(group, Run) else group))
