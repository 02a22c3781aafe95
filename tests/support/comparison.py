"""Writes the files of runs, without training, and compares them by `leyden compare`."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import yaml

from leyden.cli import run_command


def make(path: str, *, seed: int = 0, data: str = "digits", fold: int | None = None, folds: int = 5, **facts) -> None:
    """Write a run's files; `facts` may set `metrics`, `state`, `lr`, `sha256` of the test split, `cut` of the folds."""
    folder = Path("runs", path)
    folder.mkdir(parents=True)
    node = {"_target_": "my.Data"} | ({} if fold is None else {"folds": folds, "fold": fold})
    model = {"_target_": "leyden.models.classifier.Classifier"}
    raw = {"seed": seed, "data": node, "model": model, "optimizer": {"lr": facts.get("lr", 0.1)}, "checkpoint": {}}
    splits = {
        "train": (80, "train"),
        "val": (20, f"{facts.get('cut', '')}val {fold}"),
        "test": (10, facts.get("sha256", data)),
    }
    manifest = {
        "created": f"{seed:03}",
        "raw": raw,
        "choices": {"data": data},
        "overrides": facts.get("overrides", []),
        "monitor": facts.get("monitor", "val/accuracy"),
        "data": {name: {"size": size, "sha256": f"{sha} of {data}"} for name, (size, sha) in splits.items()},
    }
    status = {"state": facts.get("state", "finished"), "metrics": facts.get("metrics", {})}
    for name, content in (("config.yaml", raw), ("manifest.json", manifest), ("status.json", status)):
        dump = yaml.safe_dump if name.endswith("yaml") else json.dumps
        (folder / name).write_text(dump(content))


def edit(path: str, change: Callable[[dict], object]) -> None:
    """Change a run's manifest."""
    file = Path("runs", path, "manifest.json")
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


A = [0.900, 0.905, 0.910, 0.902, 0.908]
B = [0.912, 0.915, 0.919, 0.914, 0.915]


def compare(*words: str) -> int:
    return run_command("compare", [*words])


def rows(path: str = "found.csv") -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).open()))
