"""What a model logs with `LightningModule.log`: under leyden's names too, and continued by a resumed epoch.

These classes extend private parts of Lightning 2.6.
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torchmetrics import Metric, MetricCollection
from typing_extensions import override

from leyden.console import say
from leyden.distributed import ranks
from leyden.metric_names import metric_name, stage_of
from leyden.models.model import Model

SUMS = ("value", "cumulated_batch_size")  # the state of an accumulator of Lightning's


class LoggerConnector(_LoggerConnector):
    """Lightning's collector of logged values, in which each value that callbacks see has leyden's name as well.

    So a callback finds its `monitor` in either spelling. Loggers get the module's own names.
    """

    evaluated: Mapping[str, Any] = MappingProxyType({})  # what the current evaluation has logged, on all its loaders

    @property
    @override
    def metrics(self) -> Any:
        """The values that the current stage has logged, for callbacks, loggers and the progress bar."""
        metrics, stage = super().metrics, stage_of(self.trainer)
        metrics["callback"] |= {metric_name(name, stage): value for name, value in metrics["callback"].items()}
        metrics["pbar"] = {metric_name(name, stage): value for name, value in metrics["pbar"].items()}
        return metrics

    @override
    def update_eval_epoch_metrics(self) -> Any:
        """Collect what was logged for a loader, or at the end of the evaluation."""
        self.evaluated = {**self.evaluated, **self.metrics["callback"]}
        return super().update_eval_epoch_metrics()

    @override
    def reset_results(self) -> None:
        """Begin an epoch of training or evaluation."""
        super().reset_results()
        self.evaluated = {}


class Results(_ResultCollection):
    """Lightning's accumulators of the values that training has logged since its epoch began."""

    def __init__(self) -> None:
        super().__init__(training=True)
        self.restored: dict[str, dict[str, Any]] = {}  # states of accumulators that the resumed epoch has yet to make

    @override
    def __setitem__(self, key: str, accumulator: Any) -> None:
        """Add an accumulator, which continues the one of the checkpoint."""
        for name, value in self.restored.pop(key, {}).items():
            setattr(accumulator, name, value)
        super().__setitem__(key, accumulator)

    @override
    def reset(self, metrics: bool | None = None, fx: str | None = None) -> None:
        """Begin an epoch, or one hook of it if `fx` names one."""
        super().reset(metrics, fx)
        if fx is None:
            self.restored = {}


def state_dict(trainer: Trainer, results: Results) -> list[dict[str, Any]]:
    """Return what every rank has logged in the unfinished epoch, as plain data and CPU tensors.

    It covers the sums of `LightningModule.log`, the metrics that callbacks monitor, and the states of a foreign
    module's torchmetrics, which torch leaves out of its state dict. Leyden's models use theirs only to evaluate.
    """
    sums = {
        key: {name: getattr(accumulator, name) for name in SUMS if hasattr(accumulator, name)}
        for key, accumulator in results.items()
        if accumulator.is_tensor and accumulator.meta.on_epoch and not accumulator.has_reset
    }
    states = {
        name: {"count": metric._update_count, "values": {key: getattr(metric, key) for key in metric._defaults}}
        for name, metric in _metrics_of(trainer.lightning_module).items()
        if metric._update_count
    }
    state = {"sums": sums, "metrics": states, "monitored": dict(trainer._logger_connector._callback_metrics)}
    return ranks.gather(tree_map_only(Tensor, partial(_copy, device="cpu"), state))


def load_state_dict(trainer: Trainer, results: Results, states: list[dict[str, Any]]) -> None:
    """Continue from the `state_dict` of as many ranks."""
    if len(states) != ranks.size():
        say(f"{len(states)} ranks have logged the epoch so far, and {ranks.size()} go on: its means begin again")
        return
    state = tree_map_only(Tensor, partial(_copy, device=trainer.strategy.root_device), states[ranks.rank()])
    results.restored = state["sums"]
    trainer.callback_metrics.update(state["monitored"])
    metrics = _metrics_of(trainer.lightning_module)
    for name, saved in state["metrics"].items():
        if metric := metrics.get(name):
            metric._update_count = saved["count"]
            for key, value in saved["values"].items():
                setattr(metric, key, value)


def _copy(tensor: Tensor, device: torch.device | str) -> Tensor:
    return tensor.detach().to(device, copy=True)


def _metrics_of(module: LightningModule) -> dict[str, Metric]:
    if isinstance(module, Model):
        return {}
    for collection in module.modules():
        if isinstance(collection, MetricCollection):
            list(collection.values(copy_state=False))  # gives each member the state that several of them share
    return {name: metric for name, metric in module.named_modules() if isinstance(metric, Metric)}
