"""Whether more of a metric is better, as far as a config and the sources of its classes say, without torch."""

from typing import Any, Literal

from leyden.config import signatures

Mode = Literal["min", "max"]


def direction(config: dict[str, Any], metric: str) -> Mode | None:
    """Return how a metric, such as val/auroc, is improved; None where neither the model nor model.metrics says so.

    The model says so by `monitor`, and a class of torchmetrics by `higher_is_better`.
    """
    model = config.get("model") or {}
    kind = metric.partition("/")[2]
    monitor = signatures.class_attribute(str(model.get("_target_")), "monitor")
    if isinstance(monitor, tuple) and monitor[0].partition("/")[2] == kind:
        return monitor[1]
    node = (model.get("metrics") or {}).get(kind) or {}
    is_better = signatures.class_attribute(str(node.get("_target_")), "higher_is_better")
    return None if is_better is None else "max" if is_better else "min"


def monitored(config: dict[str, Any]) -> tuple[str, Mode] | None:
    """Return the metric that chooses the best checkpoint of a run, and how it is improved, if the sources say so."""
    checkpoint = config.get("checkpoint") or {}
    if metric := checkpoint.get("monitor"):
        return metric, checkpoint.get("mode") or direction(config, metric) or "min"
    return signatures.class_attribute(str((config.get("model") or {}).get("_target_")), "monitor")
