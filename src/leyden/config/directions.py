"""The direction and the highest value of a metric, read from a config and the source of its classes, without torch."""

from typing import Any, Literal

from leyden.config import signatures

Mode = Literal["min", "max"]
SHARES = ("accuracy", "auc", "ece", "f1", "precision", "recall")  # metrics of leyden's models from 0 to 1


def direction(config: dict[str, Any], metric: str) -> Mode | None:
    """Return the direction of a metric such as val/auroc; None if it is unknown.

    It is read from the model's `monitor`, or from `higher_is_better` of the torchmetrics class in model.metrics.
    """
    model = config.get("model") or {}
    name = metric.partition("/")[2]
    monitor = signatures.class_attribute(str(model.get("_target_")), "monitor")
    if isinstance(monitor, tuple) and monitor[0].partition("/")[2] == name:
        return monitor[1]
    node = (model.get("metrics") or {}).get(name) or {}
    higher_is_better = signatures.class_attribute(str(node.get("_target_")), "higher_is_better")
    return None if higher_is_better is None else "max" if higher_is_better else "min"


def monitor_of_config(config: dict[str, Any]) -> tuple[str, Mode] | None:
    """Return the metric that chooses the best checkpoint of a run, and its direction; None if the config names none."""
    checkpoint = config.get("checkpoint") or {}
    if metric := checkpoint.get("monitor"):
        return metric, checkpoint.get("mode") or direction(config, metric) or "min"
    return signatures.class_attribute(str((config.get("model") or {}).get("_target_")), "monitor")


def highest_value(config: dict[str, Any], metric: str) -> float | None:
    """Return the highest value that a metric such as test/accuracy can have; None if that is unknown or infinite."""
    model, name = config.get("model") or {}, metric.partition("/")[2]
    if node := (model.get("metrics") or {}).get(name):
        return signatures.class_attribute(str(node.get("_target_")), "plot_upper_bound")
    is_share = name in SHARES and signatures.is_subclass(str(model.get("_target_")), "leyden.models.model.Model")
    return 1.0 if is_share else None
