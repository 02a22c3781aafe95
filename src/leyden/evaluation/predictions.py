"""Saves a model's answers and scores for every sample of a split, so that models can be compared sample by sample."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from leyden.batch import SeriesBatch
from leyden.contracts import ScoresSamples
from leyden.errors import UserError
from leyden.evaluation.answers import answer, to_arrays
from leyden.files.formats import PREDICTIONS


class Predictions(Callback):
    """Predicts each batch of an evaluation on one device, and scores every sample.

    `save` writes an .npz whose rows are the samples in the order of the split: the columns of
    `leyden.evaluation.answers.answer` that are tensors of equal shape in all batches, `target`, and each score of the
    model as `score.<name>`: one number a sample, (N,), or the parts (N, P) of a metric that is computed from their sums
    over samples. It also holds its `format`, the `split`, the split's `sha256`, the `checkpoint`, and `block`:
    overlapping samples are not independent, so every `block` consecutive samples count as one.
    """

    def __init__(self) -> None:
        self.block = 1
        self._parts: list[dict[str, np.ndarray]] = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Predict the batch, and score the answers."""
        schema = getattr(pl_module, "schema", None)
        precision = trainer.precision_plugin.forward_context()
        columns = answer(pl_module, batch, schema and schema.answer, precision)
        if isinstance(batch, SeriesBatch):
            self.block = 2 * batch.future.shape[1]  # windows at this distance are nearly independent
        target = target_of(batch)
        part = {name: column for name, column in to_arrays(columns).items() if isinstance(column, np.ndarray)}
        if "probability" in part and "prediction" not in part:
            part["prediction"] = part["probability"].argmax(1)
        scorer = pl_module if isinstance(pl_module, ScoresSamples) else None
        scores = scorer.sample_scores(batch, columns) if scorer else scores_by_target(columns, target, batch)
        part |= {f"score.{name}": values.double().cpu().numpy() for name, values in scores.items()}
        self._parts.append({**part, "target": _comparable_target(target)})

    on_validation_batch_end = on_test_batch_end

    def save(self, path: Path, split: str, sha256: str, checkpoint: str) -> None:
        """Write the answers to all batches."""
        shapes = [{name: column.shape[1:] for name, column in part.items()} for part in self._parts]
        names = [name for name, shape in shapes[0].items() if all(part.get(name) == shape for part in shapes)]
        fields = {name: np.concatenate([part[name] for part in self._parts]) for name in names}
        facts = {"split": split, "sha256": sha256, "checkpoint": checkpoint, "block": self.block}
        np.savez(path, **PREDICTIONS.stamp(facts | fields))


def target_of(batch: Any) -> Tensor:
    """Return the targets of a batch on the CPU: the future of series, else the field `target`, else the last field.

    Raises:
        UserError: if the batch has no tensor of targets.
    """
    if isinstance(batch, SeriesBatch):
        return batch.future.masked_fill(~batch.observed, torch.nan).cpu()
    target = getattr(batch, "target", batch[-1] if isinstance(batch, tuple | list) else None)
    if not isinstance(target, Tensor):
        raise UserError(f"--save-predictions: a {type(batch).__name__} has no targets that are a tensor")
    return target.cpu()


def scores_by_target(columns: dict[str, Any], target: Tensor, batch: Any) -> dict[str, Tensor]:
    """Score each sample (N,): classes by `accuracy` and `loss`, values by `mse` and `mae`.

    Raises:
        UserError: if the answers are neither probabilities of the classes nor values like the targets.
    """
    probability, prediction = columns.get("probability"), columns.get("prediction")
    if isinstance(prediction, Tensor) and target.ndim == 1 and not target.is_floating_point() and prediction.ndim == 2:
        probability = prediction  # without a schema, `answer` cannot tell probabilities from values
    if isinstance(probability, Tensor) and target.ndim == 1:
        likelihood = probability.double().gather(1, target[:, None])[:, 0]
        label = prediction if isinstance(prediction, Tensor) and prediction.ndim == 1 else probability.argmax(1)
        return {"accuracy": (label == target).double(), "loss": -likelihood.log()}
    if not isinstance(prediction, Tensor) or prediction.shape != target.shape:
        shape = tuple(prediction.shape) if isinstance(prediction, Tensor) else ", ".join(columns)
        raise UserError(
            f"--save-predictions: predict_step gives {shape}, which are neither probabilities (B, K) nor values like "
            f"the targets {tuple(target.shape)}; define sample_scores in the model"
        )
    error = (prediction.double() - target).flatten(1) if target.ndim > 1 else (prediction.double() - target)[:, None]
    return {"mse": error.square().nanmean(1), "mae": error.abs().nanmean(1)}  # NaN if nothing was observed


def _comparable_target(target: Tensor) -> np.ndarray:
    """Return targets as an array; rows of token ids, whose padding differs between batches, become digests."""
    if target.ndim == 1 or target.is_floating_point():
        return target.numpy()
    rows = [np.trim_zeros(row, "b").tobytes() for row in target.numpy()]
    return np.array([int.from_bytes(hashlib.sha256(row).digest()[:8], "little") for row in rows], np.uint64)
