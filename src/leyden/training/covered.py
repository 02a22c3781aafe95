"""Which trainings the tight loop of `training/loop.py` covers; all others go through Lightning's `advance`."""

from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

OF_TRANSFERS = ("on_after_batch_transfer", "on_before_batch_transfer", "transfer_batch_to_device")
OF_BACKWARD = ("on_after_backward", "on_before_backward", "on_before_optimizer_step", "on_before_zero_grad")
# Hooks that the tight loop does not call: a training in which one is overridden takes Lightning's way.
UNCOVERED = {
    LightningModule: (
        *("backward", "clip_gradients", "configure_gradient_clipping", "lr_scheduler_step", "on_train_batch_start"),
        *("optimizer_step", "optimizer_zero_grad", *OF_TRANSFERS, *OF_BACKWARD),
    ),
    LightningDataModule: OF_TRANSFERS,
    Callback: OF_BACKWARD,
}


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return a trainer's callbacks, an attribute that Lightning sets where type checkers do not see it."""
    return vars(trainer)["callbacks"]


def covers(trainer: Any) -> bool:
    """Tell whether the tight loop does all that this fit asks for.

    Type checkers do not see the attributes that Lightning's connectors set on the `Trainer`.
    """
    model, strategy, precision = trainer.lightning_module, trainer.strategy, trainer.precision_plugin
    overriding: list[tuple[type, Any]] = [(LightningModule, model), *((Callback, c) for c in trainer.callbacks)]
    if trainer.datamodule is not None:
        overriding.append((LightningDataModule, trainer.datamodule))
    by_hand = not model.automatic_optimization
    return (
        (by_hand or _steps_plainly(strategy.optimizers))
        and isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
        and type(precision) in (Precision, MixedPrecision)
        and (by_hand or getattr(precision, "scaler", None) is None)
        and trainer.accumulate_grad_batches == 1
        and (by_hand or type(trainer.fit_loop.epoch_loop.automatic_optimization) is _AutomaticOptimization)
        and trainer._val_check_time_interval is None
        and isinstance(trainer.profiler, PassThroughProfiler)
        and not trainer.fast_dev_run
        and not any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs if config.interval == "step")
        and not any(
            is_overridden(hook, owner, parent=parent) for parent, owner in overriding for hook in UNCOVERED[parent]
        )
    )


def _steps_plainly(optimizers: list[torch.optim.Optimizer]) -> bool:
    """Tell whether there is only one optimizer, and it needs no closure."""
    (first, *others) = optimizers
    module = type(first).__module__
    return not others and module.startswith("torch.optim") and not isinstance(first, torch.optim.LBFGS)
