"""The learning-rate range test (Smith 2017, section 3.3): the rate grows at every step until the loss explodes."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from rich.table import Table

from leyden.commands.find import save
from leyden.config.check import Composition, at
from leyden.console import console
from leyden.errors import UserError
from leyden.figures import plots
from leyden.training import probe
from leyden.training.assemble import build_learner

EXPLODED = 4.0  # times the lowest loss
MEMORY = 0.9  # of the running mean that is watched for it
ROWS = 12  # of the table


class RangeTest(Callback):
    """Multiplies the learning rate by the same factor at every step, and notes the losses."""

    def __init__(self, rates: np.ndarray) -> None:
        self.losses: list[float] = []
        self._rates = rates
        self._ratios: list[list[float]] = []
        self._mean, self._lowest = 0.0, math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the schedule's place."""
        trainer.strategy.lr_scheduler_configs = []
        groups = trainer.optimizers[0].param_groups
        highest = max(group["lr"] for group in groups)
        self._ratios = [group["lr"] / highest for group in groups]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rate."""
        for group, ratio in zip(trainer.optimizers[0].param_groups, self._ratios, strict=True):
            group["lr"] = float(self._rates[len(self.losses)]) * ratio

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss; stop at the end, or when it explodes."""
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            trainer.should_stop = True
            return
        self.losses.append(loss)
        self._mean = MEMORY * self._mean + (1 - MEMORY) * loss
        mean = self._mean / (1 - MEMORY ** len(self.losses))
        self._lowest = min(self._lowest, mean)
        exploded = mean > self._lowest + (EXPLODED - 1) * abs(self._lowest)
        trainer.should_stop = exploded or len(self.losses) == len(self._rates)


def find(composition: Composition, folder: Path, low: float, high: float, steps: int = 100) -> int:
    """Ramp the rate from `low` to `high`; suggest where the loss falls steepest."""
    model, data = build_learner(composition.config)
    if not model.automatic_optimization:
        raise UserError(
            f"leyden find lr follows one loss of one optimizer; {type(model).__name__} steps several by hand: "
            "compare rates by leyden train -m optimizer.lr=1e-4,2e-4,4e-4"
        )
    rates = np.geomspace(low, high, steps)
    test = RangeTest(rates)
    probe.fit(model, data, composition.config, steps, [test])
    losses = np.array(test.losses)
    rates = rates[: len(losses)]
    if len(losses) < 2:
        raise UserError(f"--min={low:g}: the loss explodes at once; begin lower")
    smooth = smoothed(losses)
    best = steepest(rates, losses, smooth)
    rows = range(0, len(rates), -(-len(rates) // ROWS))
    table = Table("lr", "loss", box=None, pad_edge=False, header_style="dim")
    for k in sorted({*rows, *([] if best is None else [best])}):
        table.add_row(f"{rates[k]:.2e}", f"{smooth[k]:.4g}", style="bold" if k == best else "")
    console.print(table)
    suggestion = None if best is None else float(f"{rates[best]:.1e}")
    key = "optimizer.lr" if at(composition.config, "optimizer.lr") is not None else "the learning rate"
    facts = {"lr": rates.tolist(), "loss": losses.tolist(), "smoothed": smooth.tolist(), "suggestion": suggestion}
    save(folder, "lr", composition, plots.lr_range(rates, losses, smooth, suggestion), facts)
    if suggestion is None:
        print("the loss falls nowhere by more than its noise: give it more --steps, or a larger data.batch_size")
        return 1
    print(f"where the smoothed loss falls steepest: {key}={suggestion:g}")
    return 0


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Return the losses averaged with their neighbours, by a bell curve of 2 % of the steps, two at least."""
    width = max(2.0, 0.02 * len(losses))
    step = np.arange(len(losses))
    weights = np.exp(-0.5 * ((step[:, None] - step) / width) ** 2)
    return weights @ losses / weights.sum(1)


def steepest(rates: np.ndarray, losses: np.ndarray, smooth: np.ndarray) -> int | None:
    """Return where the loss falls steepest over the logarithm of the rate, on the way to its lowest point.

    None, if it does not fall by three times its noise; the first tenth of the steps shows where it began.
    """
    first, lowest = len(rates) // 10, int(smooth.argmin())
    before = slice(lowest + 1)
    spread = 1.5 * np.median(np.abs(losses - smooth)[before])  # a standard deviation, whatever the outliers
    # A loss is computed in float32, so its last bit is noise even where the curve is flat and the spread is zero.
    noise = max(spread, np.finfo(np.float32).eps * np.abs(losses[before]).max())
    if lowest <= first or smooth[: first + 1].mean() - smooth[lowest] <= 3 * noise:
        return None
    return first + int(np.gradient(smooth, np.log(rates))[first : lowest + 1].argmin())
