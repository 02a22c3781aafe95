"""The direction of a metric and its highest possible value, from a config and its classes' source, without torch."""

import re
from typing import Any, Literal

from leyden.config import signatures
from leyden.metric_names import metric_name

Mode = Literal["min", "max"]
SHARES = ("accuracy", "auc", "ece", "f1", "precision", "recall")  # metrics of leyden's models from 0 to 1
# words in the names of metrics
SHARE_WORDS = {"acc", "accuracy", "precision", "recall", "f1", "iou", "dice", "auc", "auroc", "coverage"}
HIGHER_IS_BETTER = {*SHARE_WORDS, "bleu", "chrf", "skill", "density", "modes", "r2", "psnr", "ssim"}
LOWER_IS_BETTER = {"loss", "mse", "mae", "rmse", "mase", "mape", "ece", "brier", "error", "nll", "nats", "bits"}
LOWER_IS_BETTER |= {"perplexity", "fid", "kid", "wer", "cer", "ter"}


def direction(config: dict[str, Any], metric: str) -> Mode | None:
    """Return the direction of a metric such as val/auroc; None if it is unknown.

    It is read from the model's `monitor`, or from `higher_is_better` of the torchmetrics class in model.metrics.
    """
    model = config.get("model") or {}
    name = metric.partition("/")[2]
    monitor = _monitor_of_class(model)
    if monitor and monitor[0].partition("/")[2] == name:
        return monitor[1]
    node = (model.get("metrics") or {}).get(name) or {}
    higher_is_better = signatures.class_attribute(str(node.get("_target_")), "higher_is_better")
    return None if higher_is_better is None else "max" if higher_is_better else "min"


def monitor_of_config(config: dict[str, Any]) -> tuple[str, Mode] | None:
    """Return the metric that chooses the best checkpoint of a run, and its direction; None if the config names none."""
    checkpoint = config.get("checkpoint") or {}
    if metric := checkpoint.get("monitor"):
        return metric, checkpoint.get("mode") or direction(config, metric) or direction_of_name(metric) or "min"
    return _monitor_of_class(config.get("model") or {})


def _monitor_of_class(model: dict[str, Any]) -> tuple[str, Mode] | None:
    """Return what `contracts.monitor_of` returns, as far as the class attribute shows it."""
    match signatures.class_attribute(str(model.get("_target_")), "monitor"):
        case (str() as name, "min" | "max" as mode):
            return metric_name(name, "val"), mode
    return None


def words(metric: str) -> set[str]:
    """Return the words in the name of a metric, in lower case and without its stage."""
    return set(re.split(r"[\W_]+", metric.partition("/")[2].lower()))


def direction_of_name(metric: str) -> Mode | None:
    """Return the direction that the name of a metric such as val/top_accuracy shows; None if it shows none."""
    is_higher, is_lower = bool(words(metric) & HIGHER_IS_BETTER), bool(words(metric) & LOWER_IS_BETTER)
    return None if is_higher == is_lower else "max" if is_higher else "min"


def highest_value(config: dict[str, Any], metric: str) -> float | None:
    """Return the highest value that a metric such as test/accuracy can have; None if that is unknown or infinite."""
    model, name = config.get("model") or {}, metric.partition("/")[2]
    if node := (model.get("metrics") or {}).get(name):
        return signatures.class_attribute(str(node.get("_target_")), "plot_upper_bound")
    is_share = name in SHARES and signatures.is_subclass(str(model.get("_target_")), "leyden.models.model.Model")
    return 1.0 if is_share else None
