"""Predict files with a run's checkpoint: `leyden predict` as a function."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from leyden.callbacks.predictions import are_probabilities
from leyden.checkpoints.choose import choose
from leyden.contracts import FileReader, Predictor
from leyden.errors import UserError
from leyden.evaluation.load import load
from leyden.models.model import eval_mode, word_probabilities
from leyden.run.directory import Run


def predict(
    run: Run, files: list[Path], checkpoint_name: str | None = None, unreadable: list[str] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a name and the prediction, plain JSON data, for each sample of the files in their order.

    `checkpoint_name` is best, last or step-N. The reasons why files cannot be read are added to `unreadable`; without
    it, the first is raised.

    Raises:
        UserError: when the model or the data cannot predict, or there is no such checkpoint.
    """
    config = run.config
    model, data = load(config, choose(run, checkpoint_name))
    if not isinstance(model, Predictor) and not is_overridden("predict_step", model, LightningModule):
        raise UserError(f"{run.name} cannot predict: {config['model']['_target_']} has no method predict_step")
    if not isinstance(data, FileReader):
        raise UserError(f"{run.name} cannot predict: {config['data']['_target_']} has no method load_files")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    classes = getattr(data, "classes", None)
    for path in files:
        try:
            for names, batch in data.load_files([path]):
                yield from zip(names, _predict_batch(model, batch, classes), strict=True)
        except UserError as error:
            if unreadable is None:
                raise
            unreadable.append(str(error))


def _predict_batch(model: Any, batch: Any, classes: list[str] | None) -> list[dict[str, Any]]:
    """Return the model's own predictions, or rows made from what its `predict_step` returns."""
    if isinstance(model, Predictor):
        return model.predict(batch)
    with torch.no_grad(), eval_mode(model):
        prediction = model.predict_step(move_data_to_device(batch, model.device), 0)
    if not isinstance(prediction, Tensor):
        return [row if isinstance(row, dict) else {"prediction": row} for row in prediction]
    rows = prediction.float().tolist()
    if not are_probabilities(prediction, batch[-1] if isinstance(batch, tuple | list) else None):
        return [{"prediction": row} for row in rows]
    return [word_probabilities(row, classes or [str(k) for k in range(len(row))]) for row in rows]
