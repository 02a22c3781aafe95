"""The notebook and the page about Python run as they stand, and the notebook is kept without outputs."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import leyden
from support.processes import forked

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOK = json.loads((DOCS / "quickstart.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
PAGE = (DOCS / "python.md").read_text()


def run_cells(cells: list[str]) -> dict[str, Any]:
    """Run code as a notebook does: cell by cell, in one namespace; show what the last line of a cell returns."""
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        tree = ast.parse(cell, f"cell {number}")
        *_, last = tree.body
        value = None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        exec(compile(tree, f"cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        if value is not None:
            assert repr(value)
            assert getattr(value, "_repr_html_", str)() is not None
    return names


@pytest.mark.slow  # five runs, of three epochs each
def test_the_notebook_runs(workdir: Path):
    def run() -> int:
        names = run_cells(["".join(cell["source"]) for cell in CELLS])
        assert names["run"].status["state"] == "finished"
        assert len(names["comparison"].sentences) == 1
        assert names["best"].name in {run.name for run in leyden.runs("width_8")}
        return 7

    assert forked(run) == 7


def test_the_notebook_is_whole_and_has_no_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert len(CELLS) >= 8
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)


def test_the_page_names_every_public_name():
    assert [name for name in leyden.__all__ if f"leyden.{name}" not in PAGE and name != "Comparison"] == []


@pytest.mark.slow  # five runs
def test_the_page_runs(workdir: Path, undrawn: None):
    def run() -> int:
        names = run_cells(re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL))
        assert set(names["means"]) == {"low", "high"}
        assert names["wrong"].mean() == pytest.approx(1 - names["run"].results["test/accuracy"], abs=1e-6)
        return 7

    assert forked(run) == 7
