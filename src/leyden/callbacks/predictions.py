"""Keeps what a model says of every sample of a split, so that two models can be compared on the same ones."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from leyden.batch import SeriesBatch
from leyden.errors import UserError


class Predictions(Callback):
    """Asks the `predict_step` of a model about each batch of an evaluation, on one device.

    `save` writes an .npz whose rows are the samples in the order of the split: `target` and `prediction`, for classes
    (N,) with their `probability` (N, K), for values (N, …) with their `error` (N,), the mean square of what was
    observed; and `split`, its `sha256`, the `checkpoint`, and `block`, how many samples in a row are as good as one
    since they overlap.
    """

    def __init__(self) -> None:
        self.block = 1
        self._parts: list[dict[str, Tensor]] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what is said of the batch."""
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            said = pl_module.predict_step(batch, batch_idx)
        if isinstance(batch, SeriesBatch):
            self.block = 2 * batch.future.shape[1]  # windows so far apart have next to nothing in common
        self._parts.append({name: field.cpu() for name, field in judged(batch, said).items()})

    on_validation_batch_end = on_test_batch_end

    def save(self, path: Path, split: str, sha256: str, checkpoint: str) -> None:
        """Write what was kept."""
        fields = {name: torch.cat([part[name] for part in self._parts]).numpy() for name in self._parts[0]}
        np.savez(path, **fields, split=split, sha256=sha256, checkpoint=checkpoint, block=self.block)


def judged(batch: Any, said: Any) -> dict[str, Tensor]:
    """Put what was said of a batch beside its targets, the last field but for series.

    Raises:
        UserError: when they are neither classes with their probabilities nor values.
    """
    target = batch.future if isinstance(batch, SeriesBatch) else batch[-1] if isinstance(batch, tuple | list) else None
    if not isinstance(target, Tensor) or not isinstance(said, Tensor) or len(said) != len(target):
        raise UserError(f"--save-predictions: of a {type(batch).__name__} there is no prediction for each sample")
    if said.ndim == 2 and target.ndim == 1 and not target.is_floating_point():
        return {"target": target, "prediction": said.argmax(1), "probability": said.float()}
    if said.shape != target.shape:
        raise UserError(
            f"--save-predictions: predict_step gives {tuple(said.shape)}, which are neither probabilities (B, K) "
            f"nor values like the targets {tuple(target.shape)}"
        )
    said, target = said.float(), target.float()
    known = batch.observed if isinstance(batch, SeriesBatch) else torch.ones_like(target, dtype=torch.bool)
    square = (said - target).square().masked_fill(~known, 0).flatten(1).sum(1)
    error = square / known.flatten(1).sum(1)  # NaN where nothing was observed
    return {"target": target.masked_fill(~known, torch.nan), "prediction": said, "error": error}
