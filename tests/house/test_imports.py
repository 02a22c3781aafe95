"""The house's rule: imports run one way, and only behind its YAML is wandb imported."""

import ast
from pathlib import Path

import leyden

ROOT = Path(leyden.__file__).parent

# what a part may import of leyden; `*` is the rest of its own folder
MAY = {
    "errors": set(),
    "lazy_imports": set(),
    "batch": {"errors"},
    "signatures": {"places"},
    "clock": set(),
    "flops": set(),
    "nets": {"errors", "lazy_imports"},
    "metrics": {"errors", "lazy_imports"},
    "optim": {"errors", "lazy_imports"},
    "figures": {"errors"},
    "mosaics": set(),
    "git": set(),
    "passwords": {"errors"},
    "places": set(),
    "raised": {"places"},
    "origin": {"raised"},
    "records": {"console", "places"},
    "hydra_check": {"build", "check", "errors", "passwords", "places", "signatures"},
    "run_paths": {"errors"},
    "image_files": {"errors"},
    "snapshot": {"errors", "git"},
    "comparison": {"check", "errors", "run", "signatures", "summary", "sweep"},
    "data": {"batch", "errors", "image_files", "lazy_imports"},
    "models": {"batch", "metrics", "figures", "lazy_imports", "mosaics", "errors"},
    "loggers": {"console", "errors", "git", "image_files", "lazy_imports"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_imports_run_one_way():
    for path in ROOT.rglob("*.py"):
        allowed = MAY.get(part(path))
        used = {name.split(".")[1] for name in imported(path) if name.startswith("leyden.")} - {part(path)}
        if allowed is not None:
            assert used <= allowed, f"{path} imports {used - allowed}"


def test_nets_know_nothing_of_lightning():
    for path in (ROOT / "nets").glob("*.py"):
        assert not any(name.startswith(("lightning", "torchmetrics")) for name in imported(path)), path


def test_wandb_stays_behind_its_logger():
    users = [p for p in ROOT.rglob("*.py") if any(n.split(".")[0] == "wandb" for n in imported(p))]
    assert [p.name for p in users if part(p) != "commands"] == ["wandb.py"]
