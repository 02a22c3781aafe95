"""Collect what a model logs with `LightningModule.log`, also under leyden's names; a resumed epoch continues it.

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

SUMS = ("value", "cumulated_batch_size")  # the attributes that hold an accumulator's state in Lightning


class LoggerConnector(_LoggerConnector):
    """Lightning's collector of logged values, in which each value that callbacks see has leyden's name as well.

    So a callback finds its `monitor` in either spelling. Loggers get the module's own names.
    """

    evaluation_metrics: Mapping[str, Any] = MappingProxyType({})  # of the current evaluation, on all its loaders

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
        """Add what was logged for one loader, or at the end of the evaluation, to `evaluation_metrics`."""
        self.evaluation_metrics = {**self.evaluation_metrics, **self.metrics["callback"]}
        return super().update_eval_epoch_metrics()

    @override
    def reset_results(self) -> None:
        """Forget the logged values when an epoch of training or evaluation begins."""
        super().reset_results()
        self.evaluation_metrics = {}


class Results(_ResultCollection):
    """Lightning's accumulators of the values that training has logged since its epoch began."""

    def __init__(self) -> None:
        super().__init__(training=True)
        # states of the checkpoint, for accumulators that the resumed epoch will create
        self.states_to_restore: dict[str, dict[str, Any]] = {}

    @override
    def __setitem__(self, key: str, accumulator: Any) -> None:
        """Add an accumulator, with its state from the checkpoint if there is one."""
        for name, value in self.states_to_restore.pop(key, {}).items():
            setattr(accumulator, name, value)
        super().__setitem__(key, accumulator)

    @override
    def reset(self, metrics: bool | None = None, fx: str | None = None) -> None:
        """Reset the accumulators when an epoch begins, or only those of the hook `fx`."""
        super().reset(metrics, fx)
        if fx is None:
            self.states_to_restore = {}


def state_dict(trainer: Trainer, results: Results) -> list[dict[str, Any]]:
    """Return what every rank has logged in the unfinished epoch, as plain data and CPU tensors.

    It covers the sums of `LightningModule.log`, the metrics that callbacks monitor, and the states of a foreign
    module's torchmetrics, which are not part of its state dict. Leyden's models use torchmetrics only in evaluation.
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
    """Continue from a `state_dict`; if the number of ranks has changed, start the means of the epoch again."""
    if len(states) != ranks.size():
        say(f"{len(states)} ranks logged the epoch so far, and {ranks.size()} continue it: its means start again")
        return
    state = tree_map_only(Tensor, partial(_copy, device=trainer.strategy.root_device), states[ranks.rank()])
    results.states_to_restore = state["sums"]
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
            list(collection.values(copy_state=False))  # gives each member the state that it shares with others
    return {name: metric for name, metric in module.named_modules() if isinstance(metric, Metric)}
