"""Convert the names of logged values to `stage/name`, whichever spelling a module or a person uses."""

import re
from collections.abc import Container, Mapping
from functools import lru_cache
from typing import Any

STAGES = ("train", "val", "test")
SPELLINGS = {"training": "train", "valid": "val", "validation": "val"}
STAGE_AND_NAME = re.compile(r"(training|train|validation|valid|val|test)[_/. -](.+)")
# Lightning tells several loaders apart by a suffix
NAME_AND_LOADER = re.compile(r"(.+?)(/dataloader_idx_\d+)?")


@lru_cache(maxsize=10_000)
def metric_name(name: str, stage: str = "") -> str:
    """Return leyden's name of a logged value: `val/loss` for `val_loss` and `validation/loss`.

    A name that contains no stage gets the `stage` that logged it: `acc` is `val/acc` if it was logged in validation.
    Without `stage` it stays as it is, as does a name with a slash whose first part is no stage, such as `perf/time`.
    """
    match = NAME_AND_LOADER.fullmatch(name)
    base, loader = match.groups(default="") if match else (name, "")
    if match := STAGE_AND_NAME.fullmatch(base):
        return f"{SPELLINGS.get(match[1], match[1])}/{match[2]}{loader}"
    return f"{stage}/{base}{loader}" if stage and base and "/" not in base else name


def find_metric(name: str, names: Container[str]) -> str | None:
    """Return which of `names` a person means; if `name` has no stage, the metric of the test comes first.

    Runs of older versions have the module's spellings, so a metric that is spelled exactly like `name` is preferred.
    """
    candidates = (name, *(metric_name(name, stage) for stage in ("", "test", "val", "train")))
    return next((candidate for candidate in candidates if candidate in names), None)


def named_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics with leyden's names, as floats; `LoggerConnector` adds these names to a trainer's metrics."""
    return {name: float(value) for name, value in metrics.items() if metric_name(name, "train") == name}


def stage_of(trainer: Any) -> str:
    """Return the stage of a trainer, such as `train`, `val` or `test`; "" if there is none, or it is not running."""
    stage = trainer.state.stage if trainer is not None else None
    return stage.dataloader_prefix if stage is not None else ""
