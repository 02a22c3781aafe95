"""The learning-rate range test (Smith 2017, section 3.3): the rate grows at every step until the loss explodes."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from leyden.checkpoints import initial
from leyden.config.locations import in_project_folder
from leyden.config.run_config import RunConfig
from leyden.errors import UserError
from leyden.training import probe
from leyden.training.assemble import build_learner

EXPLOSION_FACTOR = 4.0  # the loss has exploded at this many times its lowest value
DECAY = 0.9  # decay of the running mean of the loss


class RangeTest(Callback):
    """Multiplies the learning rate by the same factor at every step, and records the losses."""

    def __init__(self, rates: np.ndarray) -> None:
        self.losses: list[float] = []
        self._rates = rates
        self._ratios: list[float] = []  # each parameter group's rate over the optimizer's
        self._loss_ema, self._lowest_loss = 0.0, math.inf

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the schedule, which would set the rate too."""
        trainer.strategy.lr_scheduler_configs = []
        groups = trainer.optimizers[0].param_groups
        optimizer_rate = max(group["lr"] / group.get("lr_ratio", 1.0) for group in groups)
        self._ratios = [group["lr"] / optimizer_rate for group in groups]

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rate."""
        for group, ratio in zip(trainer.optimizers[0].param_groups, self._ratios, strict=True):
            group["lr"] = float(self._rates[len(self.losses)]) * ratio

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss; stop at the last rate, or when the loss explodes."""
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            trainer.should_stop = True
            return
        self.losses.append(loss)
        self._loss_ema = DECAY * self._loss_ema + (1 - DECAY) * loss
        smoothed_loss = self._loss_ema / (1 - DECAY ** len(self.losses))
        self._lowest_loss = min(self._lowest_loss, smoothed_loss)
        has_exploded = smoothed_loss > self._lowest_loss + (EXPLOSION_FACTOR - 1) * abs(self._lowest_loss)
        trainer.should_stop = has_exploded or len(self.losses) == len(self._rates)


class RangeTestResult(NamedTuple):
    """The measurements of n steps, arrays (n,), and the step whose rate the test suggests."""

    rates: np.ndarray
    losses: np.ndarray
    smoothed_losses: np.ndarray
    best: int | None  # None if the loss never falls by more than its noise

    @property
    def suggestion(self) -> float | None:
        """The learning rate to train with, to two digits."""
        return None if self.best is None else float(f"{self.rates[self.best]:.1e}")


@in_project_folder()
def range_test(config: RunConfig, low: float, high: float, steps: int = 100) -> RangeTestResult:
    """Ramp the rate from `low` to `high` in a short training; suggest the rate where the loss falls steepest.

    The config's `init` is frozen (`leyden.run.freeze.with_run_paths`).

    Raises:
        UserError: if the model steps several optimizers, or the loss explodes at the first step.
    """
    model, data = build_learner(config)
    if not model.automatic_optimization:
        raise UserError(
            f"leyden find lr follows one loss of one optimizer; {type(model).__name__} steps several by hand: "
            "compare rates by leyden train -m optimizer.lr=1e-4,2e-4,4e-4"
        )
    if init := config.get("init"):
        initial.load(model, init, Path(init["weights"]))
    rates = np.geomspace(low, high, steps)
    test = RangeTest(rates)
    probe.fit(model, data, config, steps, [test])
    losses = np.array(test.losses)
    rates = rates[: len(losses)]
    if len(losses) < 2:
        raise UserError(f"--min={low:g}: the loss explodes at once; start lower")
    smoothed_losses = smooth_losses(losses)
    return RangeTestResult(rates, losses, smoothed_losses, steepest_step(rates, losses, smoothed_losses))


def smooth_losses(losses: np.ndarray) -> np.ndarray:
    """Smooth losses (n,) by a Gaussian whose standard deviation is 2 % of the steps, and at least two steps."""
    width = max(2.0, 0.02 * len(losses))
    step = np.arange(len(losses))
    weights = np.exp(-0.5 * ((step[:, None] - step) / width) ** 2)
    return weights @ losses / weights.sum(1)


def steepest_step(rates: np.ndarray, losses: np.ndarray, smoothed_losses: np.ndarray) -> int | None:
    """Return the step at which the loss falls steepest over the logarithm of the rate, before its lowest point.

    Return None if the smoothed loss does not fall below its mean over the first tenth of the steps by more than three
    times its noise.
    """
    first, lowest = len(rates) // 10, int(smoothed_losses.argmin())
    descent = slice(lowest + 1)
    # an estimate of the standard deviation that is robust to outliers
    spread = 1.5 * np.median(np.abs(losses - smoothed_losses)[descent])
    # A loss is computed in float32, so its last bit is noise even if the curve is flat and the spread is zero.
    noise = max(spread, np.finfo(np.float32).eps * np.abs(losses[descent]).max())
    if lowest <= first or smoothed_losses[: first + 1].mean() - smoothed_losses[lowest] <= 3 * noise:
        return None
    return first + int(np.gradient(smoothed_losses, np.log(rates))[first : lowest + 1].argmin())
