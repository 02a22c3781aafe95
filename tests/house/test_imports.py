"""Imports run down: the table below is the order of the packages, and no two packages or files import each other."""

import ast
from functools import cache
from pathlib import Path

import leyden

ROOT = Path(leyden.__file__).parent
LONGEST_FILE, LONGEST_FUNCTION, MOST_ROOT_MODULES = 350, 60, 10  # lines, lines, files beside __init__.py

# A line may import from the lines below it; packages that share a line do not know each other.
STOREYS = """
    cli
    commands api
    comparison
    sweep
    launch
    evaluation
    training
    callbacks
    checkpoints
    run
    adoption
    config
    models data
    nets metrics loggers optim
    contracts
    schema
    preparation
    distributed figures
    batch files folds git lazy_imports metric_names statistics
    console
    errors
"""
LEVELS = {name: -level for level, line in enumerate(STOREYS.split("\n")) for name in line.split()}
NO_PACKAGES = {"__init__.py", "template"}  # template/ is a user's project, which imports leyden's public names


@cache
def modules() -> dict[str, Path]:
    """Every module of leyden by its dotted name; a package's name stands for its __init__.py."""
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*.py")]
    files = [path for path in files if path.parts[0] not in NO_PACKAGES]
    return {".".join(["leyden", *path.with_suffix("").parts]).removesuffix(".__init__"): ROOT / path for path in files}


@cache
def imported_names(path: Path) -> list[str]:
    """Return the dotted names that a file imports, inside of functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def imported_modules(path: Path) -> set[str]:
    """The modules of leyden that a file imports from."""
    names = {name for name in imported_names(path) if name.partition(".")[0] == "leyden"}
    return {name if name in modules() else name.rpartition(".")[0] for name in names} - {"leyden"}


def package(module: str) -> str:
    return module.split(".")[1]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return nodes that lead to one another, in order; an empty list if there are none."""
    finished: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in finished:
            return []
        cycles = (visit(other, [*path, node]) for other in sorted(graph.get(node, ())))
        cycle = next(filter(None, cycles), [])
        finished.add(node)
        return cycle

    return next(filter(None, (visit(node, []) for node in sorted(graph))), [])


def test_every_package_stands_in_the_table():
    assert {package(module) for module in modules()} == set(LEVELS)


def test_imports_run_down():
    for module, path in modules().items():
        for other in imported_modules(path):
            upper, lower = package(module), package(other)
            assert upper == lower or LEVELS[lower] < LEVELS[upper], f"{module} imports {other}"


def test_no_two_files_import_each_other():
    assert circle({module: imported_modules(path) for module, path in modules().items()}) == []


def test_only_the_command_line_imports_commands():
    plugins = ROOT.parent.joinpath("hydra_plugins").glob("*.py")
    users = [
        path for path in (*modules().values(), *plugins) if any("leyden.commands" in n for n in imported_names(path))
    ]
    assert {path.relative_to(ROOT.parent).parts[1] for path in users} <= {"cli.py", "commands"}


def test_nets_know_nothing_of_lightning():
    for path in (ROOT / "nets").glob("*.py"):
        assert not any(name.startswith(("lightning", "torchmetrics")) for name in imported_names(path)), path


def test_wandb_is_imported_in_files_of_its_name_alone():
    users = [path for path in modules().values() if any(n.split(".")[0] == "wandb" for n in imported_names(path))]
    assert {path.name for path in users} == {"wandb.py"}


def test_files_and_functions_are_short():
    long = []
    for path in modules().values():
        text = path.read_text()
        if (lines := text.count("\n")) > LONGEST_FILE:
            long.append(f"{path}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    assert long == []
    assert len([path for path in ROOT.glob("*.py") if path.name != "__init__.py"]) <= MOST_ROOT_MODULES
