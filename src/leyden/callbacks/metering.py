"""Log the model's meters and the cost of training once per interval, and check the values."""

import math
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from leyden.callbacks.throughput import Throughput
from leyden.distributed import ranks
from leyden.errors import UserError, nearest
from leyden.metric_names import metric_name, named_metrics
from leyden.metrics.meters import Meters


class Metering(Callback):
    """Reads `model.meters` and `throughput` every `trainer.log_every_n_steps` steps and at the end of each epoch.

    It logs the means over all ranks, stops a run whose training loss is not finite, and refuses a run at its first step
    if a metric that it monitors or expects is not logged. `expected` holds pairs of a config key and a metric.
    """

    def __init__(self, expected: list[tuple[str, str]], throughput: Throughput) -> None:
        self.latest_means: dict[str, float] = {}  # the last means, for the progress bar
        self.throughput = throughput
        self._expected = expected
        self._step = 0  # the step after the previous batch
        self._meters: Meters | None = None
        self._validation_names: set[str] = set()  # metrics that the sanity check has logged

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Get the model's meters; only leyden's models have them."""
        meters = getattr(pl_module, "meters", None)
        self._meters = meters if isinstance(meters, Meters) else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting at the step of the checkpoint."""
        self._step = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metric names that the sanity check logs."""
        if trainer.sanity_checking:
            self._validation_names = set(named_metrics(trainer._logger_connector.evaluation_metrics))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Read the meters when the interval is over."""
        step = trainer.global_step
        if step == 1 and self._step == 0:
            self._check_names(trainer, pl_module)
        if step != self._step and step % trainer.log_every_n_steps == 0:
            self._read(trainer)
        self._step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the rest of the epoch, and let callbacks monitor its means."""
        self._read(trainer)
        if self._meters:
            self.latest_means = self._meters.epoch()
            # LightningModule.log would slow down every step of the next epoch
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.latest_means.items()})

    def state_dict(self) -> dict[str, Any]:
        """Return the values of an unfinished interval, gathered from all ranks."""
        return self._meters.state_dict(ranks.gather) if self._meters else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the unfinished interval."""
        if self._meters and state_dict:
            self._meters.load_state_dict(state_dict, first=ranks.rank() == 0)

    def _read(self, trainer: Trainer) -> None:
        means = self._meters.interval(ranks.gather) if self._meters else {}  # waits for the device
        costs, step = self.throughput.read(trainer), trainer.global_step
        if not means and not costs:
            return
        self.latest_means = dict(means)
        for logger in trainer.loggers:
            logger.log_metrics(
                {**means, **_learning_rates(trainer), **costs, "epoch": trainer.current_epoch}, step=step
            )
        for name, loss in means.items():
            if name.startswith("train/loss") and not math.isfinite(loss):
                raise FloatingPointError(f"{name} is {loss} at step {step}: lower optimizer.lr, or clip gradients")

    def _check_names(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse metrics that are monitored or expected but were not logged."""
        # private in Lightning 2.6: the results also hold the values that LightningModule.log got in training
        results = {metric_name(str(key).partition(".")[2], "train") for key in trainer._results or ()}
        logged_names = self._validation_names | set(named_metrics(trainer.callback_metrics)) | results
        if self._meters:
            logged_names |= set(self._meters.names)
            metric_names = [name.removeprefix("val/") for name in self._validation_names if name.startswith("val/")]
            logged_names |= {f"test/{name}" for name in metric_names}
        if is_overridden("on_train_epoch_end", pl_module) or not self._validation_names:
            return  # more may be logged later
        required = [(f"monitor of {type(c).__name__}", getattr(c, "monitor", None)) for c in trainer.callbacks]
        required += self._expected if self._meters else []
        for source, name in required:
            if name and name not in logged_names | set(trainer.callback_metrics):
                raise UserError(f"{source}={name} was not logged{nearest(name, logged_names)}")


def _learning_rates(trainer: Trainer) -> dict[str, float]:
    """Return the learning rate, or that of each optimizer if there are several."""
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    names = getattr(trainer.lightning_module, "optimizer_names", [str(k) for k in range(len(rates))])
    if len(rates) == 1:
        return {"train/lr": rates[0]}
    return {f"train/lr_{name}": rate for name, rate in zip(names, rates, strict=True)}
