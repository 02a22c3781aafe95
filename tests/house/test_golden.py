"""scripts/golden finds the first difference between two runs."""

import importlib.util
import json
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
import torch

GOLDEN = Path(__file__).parents[2] / "scripts" / "golden"


@pytest.fixture(scope="module")
def golden() -> ModuleType:
    loader = SourceFileLoader("golden", str(GOLDEN))
    spec = importlib.util.spec_from_loader("golden", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def write_run(path: Path, weight: float = 1.0, loss: float = 0.5, rows: int = 2, key: str = "net.weight") -> Path:
    (path / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {key: torch.tensor([weight])}}, path / "checkpoints" / "last.ckpt")
    lines = [{"step": n, "time": id(path), "perf/time_step_ms": id(path), "val/loss": loss * n} for n in range(rows)]
    lines.append({"step": rows, "test/skill": float("nan")})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({}, None),
        ({"weight": 1.0 + 2**-23}, "net.weight differs"),
        ({"loss": 0.5 + 2**-53}, "val/loss was 0.5 and is 0.5000000000000001 at step 1"),
        ({"rows": 1}, "val/loss was 0.5 and is None at step 1"),
        ({"key": "net.bias"}, "one of the two lacks net.bias, net.weight"),
    ],
    ids=["equal", "weight", "value", "line", "name"],
)
def test_the_first_difference_is_named(golden: ModuleType, tmp_path: Path, change: dict, difference: str | None):
    before, after = write_run(tmp_path / "before"), write_run(tmp_path / "after", **change)
    assert golden.first_difference(before, after) == difference
