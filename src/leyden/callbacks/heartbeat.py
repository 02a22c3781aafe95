"""Tells the run's status.json how far training is."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer

from leyden.run import HEARTBEAT_EVERY, Run


class Heartbeat(Callback):
    """Writes step, epoch and time to status.json every few seconds of training or validation."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._beat_at = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Beat, if it is time."""
        if time.monotonic() - self._beat_at > HEARTBEAT_EVERY:
            self._beat(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Beat, if it is time."""
        if time.monotonic() - self._beat_at > HEARTBEAT_EVERY:
            self._beat(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where training ended."""
        self._beat(trainer)

    def _beat(self, trainer: Trainer) -> None:
        self._beat_at = time.monotonic()
        if trainer.is_global_zero:
            self.run.set_status("running", step=trainer.global_step, epoch=trainer.current_epoch)
