"""The names of logged values, `stage/name`, in whatever spelling a module logs them or a person writes them."""

import re
from collections.abc import Container, Mapping
from functools import lru_cache
from typing import Any

STAGES = ("train", "val", "test")
SPELLINGS = {"training": "train", "valid": "val", "validation": "val"}
STAGED = re.compile(r"(training|train|validation|valid|val|test)[_/. -](.+)")
OF_LOADER = re.compile(r"(.+?)(/dataloader_idx_\d+)?")  # the suffix by which Lightning tells several loaders apart


@lru_cache(maxsize=10_000)
def metric_name(name: str, stage: str = "") -> str:
    """Return leyden's name of a logged value: `val/loss` for `val_loss` and `validation/loss`.

    A name that contains no stage gets the `stage` that logged it: `acc` is `val/acc` if it was logged in validation.
    Without `stage` it stays as it is, as does a name with a slash whose first part is no stage, such as `perf/time`.
    """
    match = OF_LOADER.fullmatch(name)
    base, loader = match.groups(default="") if match else (name, "")
    if match := STAGED.fullmatch(base):
        return f"{SPELLINGS.get(match[1], match[1])}/{match[2]}{loader}"
    return f"{stage}/{base}{loader}" if stage and base and "/" not in base else name


def find_metric(name: str, names: Container[str]) -> str | None:
    """Return which of some metrics a person means by a name; without a stage, the one of the test is preferred.

    A run of an older leyden has the module's spellings, so a name that is there as it is written comes first.
    """
    candidates = (name, *(metric_name(name, stage) for stage in ("", "test", "val", "train")))
    return next((candidate for candidate in candidates if candidate in names), None)


def named_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that have leyden's names, as floats; `LoggerConnector` adds them to a trainer's metrics."""
    return {name: float(value) for name, value in metrics.items() if metric_name(name, "train") == name}


def stage_of(trainer: Any) -> str:
    """Return the stage in which a trainer is: train, val or test; empty if there is no trainer, or it does nothing."""
    stage = trainer.state.stage if trainer is not None else None
    return stage.dataloader_prefix if stage is not None else ""
