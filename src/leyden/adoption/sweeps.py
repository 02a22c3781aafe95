"""Convert the template's hyperparameter searches to leyden's search spaces."""

import math
from typing import Any

from leyden.adoption.parts import dump
from leyden.adoption.report import Report
from leyden.adoption.source import Document

SAMPLERS = {
    "TPESampler": "tpe",
    "RandomSampler": "random",
    "GridSampler": "grid",
    "CmaEsSampler": "cmaes",
    "NSGAIISampler": "nsga2",
    "QMCSampler": "qmc",
    "GPSampler": "gp",
}
COPIED_KEYS = ("n_trials", "n_jobs", "direction")


def translate(document: Document, name: str, report: Report) -> str:
    """Return the text of a search space for `sweep=NAME`."""
    place = f"configs/{document.file}"
    hydra = document.content.get("hydra")
    sweeper = hydra.get("sweeper") if isinstance(hydra, dict) else None
    sweeper = sweeper if isinstance(sweeper, dict) else {}
    content: dict[str, Any] = {}
    sampler = sweeper.get("sampler")
    if isinstance(sampler, dict):
        kind = str(sampler.get("_target_")).rpartition(".")[2]
        has_options = bool(sampler.keys() - {"_target_", "seed"})
        content |= {"sampler": sampler if has_options else SAMPLERS.get(kind, sampler)}
        content |= {"seed": sampler["seed"]} if isinstance(sampler.get("seed"), int) else {}
    content |= {key: sweeper[key] for key in COPIED_KEYS if sweeper.get(key) is not None}
    if metric := document.content.get("optimized_metric"):
        content |= {"objective": metric, "direction": content.get("direction", "minimize")}  # Hydra's default
    params = sweeper.get("params") or sweeper.get("search_space")
    content["params"] = {
        _key(str(key)): text
        for key, value in (params.items() if isinstance(params, dict) else ())
        if (text := _axis(value, f"{place}: {key}", report))
    }
    report.translations.append(f"{place} → conf/sweep/{name}.yaml: leyden train -m experiment=… sweep={name}")
    if others := document.content.keys() - {"defaults", "hydra", "optimized_metric"}:
        report.manual_steps.append(
            f"{place}: {', '.join(sorted(others))}: a search space sets no values: write an experiment"
        )
    command = f"leyden train -m experiment=NAME sweep={name}"
    return dump(content, ["@package hydra.sweeper", f"From {place}; {command}"])


def _key(key: str) -> str:
    return key.replace("datamodule.", "data.", 1) if key.startswith("datamodule.") else key


def _axis(value: Any, place: str, report: Report) -> Any:
    """Return the values of one key; older copies of the template write them as a mapping with a type."""
    if not isinstance(value, dict):
        return value if isinstance(value, str) else str(value)
    kind, low, high = value.get("type"), value.get("low"), value.get("high")
    if kind == "categorical" and isinstance(value.get("choices"), list):
        return f"choice({', '.join(map(str, value['choices']))})"
    if kind in ("float", "int") and all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high)):
        text = f"interval({low}, {high})" if kind == "float" else f"range({low}, {int(high) + 1})"
        return f"tag(log, {text})" if value.get("log") else text
    report.manual_steps.append(f"{place}: {value} is no search space that leyden knows")
    return None
