"""The predictions for every sample of a split, so that two models can be compared on the same samples."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from leyden.batch import SeriesBatch
from leyden.errors import UserError


class Predictions(Callback):
    """Calls the model's `predict_step` on each batch of an evaluation, on one device.

    `save` writes an .npz whose rows are the samples in the order of the split: `target` and `prediction`, for classes
    (N,) with their `probability` (N, K), for values (N, …) with their `error` (N,), the mean square over what was
    observed. It also holds `split`, its `sha256`, the `checkpoint`, and `block`: overlapping samples are not
    independent, so `block` samples in a row count as one.
    """

    def __init__(self) -> None:
        self.block = 1
        self._parts: list[dict[str, Tensor]] = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Predict the batch."""
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            prediction = pl_module.predict_step(batch, batch_idx)
        if isinstance(batch, SeriesBatch):
            self.block = 2 * batch.future.shape[1]  # windows that are so far apart are nearly independent
        self._parts.append({name: field.cpu() for name, field in pair_with_targets(batch, prediction).items()})

    on_validation_batch_end = on_test_batch_end

    def save(self, path: Path, split: str, sha256: str, checkpoint: str) -> None:
        """Write the predictions of all batches."""
        fields = {name: torch.cat([part[name] for part in self._parts]).numpy() for name in self._parts[0]}
        np.savez(path, **fields, split=split, sha256=sha256, checkpoint=checkpoint, block=self.block)


def pair_with_targets(batch: Any, prediction: Any) -> dict[str, Tensor]:
    """Return the predictions of a batch with their targets, which are its last field, or the future of series.

    Raises:
        UserError: when they are neither classes with their probabilities nor values.
    """
    target = batch.future if isinstance(batch, SeriesBatch) else batch[-1] if isinstance(batch, tuple | list) else None
    if not isinstance(target, Tensor) or not isinstance(prediction, Tensor) or len(prediction) != len(target):
        raise UserError(f"--save-predictions: predict_step does not predict each sample of a {type(batch).__name__}")
    if are_probabilities(prediction, target):
        return {"target": target, "prediction": prediction.argmax(1), "probability": prediction.float()}
    if prediction.shape != target.shape:
        raise UserError(
            f"--save-predictions: predict_step gives {tuple(prediction.shape)}, which are neither probabilities (B, K) "
            f"nor values like the targets {tuple(target.shape)}"
        )
    prediction, target = prediction.float(), target.float()
    observed = batch.observed if isinstance(batch, SeriesBatch) else torch.ones_like(target, dtype=torch.bool)
    square = (prediction - target).square().masked_fill(~observed, 0).flatten(1).sum(1)
    error = square / observed.flatten(1).sum(1)  # NaN where nothing was observed
    return {"target": target.masked_fill(~observed, torch.nan), "prediction": prediction, "error": error}


def are_probabilities(prediction: Tensor, target: Any) -> bool:
    """Tell whether predictions are probabilities (B, K): their targets are classes (B,)."""
    is_class = isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()
    return is_class and prediction.ndim == 2
