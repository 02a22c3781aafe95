"""Check what plain Lightning code brings: spellings of metrics, modules with their own loaders, and callbacks."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from leyden.config import signatures
from leyden.config.instantiate import refusal
from leyden.metric_names import metric_name

CALLBACKS = "lightning.pytorch.callbacks"
# Lightning's callbacks that are refused, as are their subclasses, and what to use instead.
REFUSED_CALLBACKS = {
    "ProgressBar": "leyden draws its own bar, and prints a line for each epoch with the values that are logged with "
    "prog_bar=True: leave this one out",
    "StochasticWeightAveraging": "it averages the weights after the last checkpoint, so the tested and saved weights "
    "would be others: choose callbacks=ema, or lightning.pytorch.callbacks.WeightAveraging",
    "LearningRateFinder": "leyden find lr suggests a learning rate, without a run: leave this one out",
    "BatchSizeFinder": "leyden find batch_size suggests a batch size, without a run: leave this one out",
}


def name_metrics(raw: dict[str, Any]) -> None:
    """Convert the metrics that an unresolved config names to leyden's names: `val_loss` becomes `val/loss`."""
    claims = raw.get("expect")
    nodes = [(node, "monitor", "") for node in (raw.get("callbacks") or {}).values()]
    nodes += [(claim, "metric", "") for claim in (claims if isinstance(claims, list) else [claims])]
    for node, key, stage in (*nodes, (raw.get("checkpoint"), "monitor", "val")):
        if isinstance(node, dict) and isinstance(name := node.get(key), str) and "${" not in name:
            node[key] = metric_name(name, stage)


def missing_loaders(target: str) -> str:
    """Return why a model cannot train without a data module."""
    return f"data=none: {target} has no train_dataloader, so it needs a data module: data=NAME"


def find_problems(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the path and the description of each problem that the source code of foreign classes shows."""
    target = str((config.get("model") or {}).get("_target_"))
    if config.get("data") == {} and refusal(target) is None:
        owner = signatures.method_owner(target, "train_dataloader")
        if owner and owner.startswith("lightning.pytorch.core."):  # Lightning's own method only raises an error
            yield "data", missing_loaders(target)
    for name, node in (config.get("callbacks") or {}).items():
        if isinstance(node, dict) and refusal(target := str(node.get("_target_"))) is None:
            yield from _callback_problems(f"callbacks.{name}", node, target)


def _callback_problems(path: str, node: dict[str, Any], target: str) -> Iterator[tuple[str, str]]:
    for kind, reason in REFUSED_CALLBACKS.items():
        if signatures.is_subclass(target, f"{CALLBACKS}.{kind}"):
            yield f"{path}._target_", f"{path}._target_={target}: {reason}"
    folder = node.get("dirpath")
    if isinstance(folder, str) and PurePath(folder) == PurePath("checkpoints"):
        yield f"{path}.dirpath", f"{path}.dirpath={folder}: leyden's own checkpoints lie there; name another folder"
