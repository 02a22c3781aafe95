"""Regression: a net that predicts one number for each sample, always compared with the mean of the training samples."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.batch import ImageBatch, SequenceBatch
from leyden.errors import UserError
from leyden.metrics.regression import RegressionErrors
from leyden.models.model import (
    EvaluatedModel,
    OptimizerCallable,
    ScheduleCallable,
    check_answer,
    eval_mode,
    float32_at_least,
)
from leyden.schema.field import Number

LOSS = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


class Regressor(EvaluatedModel):
    """A net trained on batches whose last field is a number (B,), scaled by the data to mean 0 and deviation 1.

    The net takes the other fields and returns (B,) or (B, 1). `loss` compares the scaled numbers; `huber` is
    quadratic up to one deviation (Huber 1964).

    Logs `loss` in training; validation and test log `mae` and `rmse` in the numbers' own unit, `r2`, the share of the
    split's variance that is explained, and `skill`, which is 1 - mse / the mse of always predicting the training mean;
    if it is above 0, the net is better than that prediction.
    """

    monitor = ("val/rmse", "min")

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable,
        schedule: ScheduleCallable | None = None,
        loss: Literal["mse", "mae", "huber"] = "mse",
        parameter_groups: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(net, optimizer, schedule, parameter_groups=parameter_groups)
        self.loss = loss
        self.errors = RegressionErrors()

    def setup(self, stage: str) -> None:
        """Check the data's answers.

        Raises:
            UserError: if they are not numbers.
        """
        check_answer(self, "number")

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the scaled numbers (B,) for the net's inputs."""
        output = self.net(*inputs)
        if output.shape[1:] not in {(), (1,)}:
            shape = tuple(output.shape[1:])
            raise UserError(f"model.net returns {shape} for each sample, but a regressor needs one: set num_classes=1")
        return output.flatten()

    def training_step(self, batch: ImageBatch | SequenceBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of the batch."""
        *inputs, truth = batch
        loss = LOSS[self.loss](float32_at_least(self(*inputs)), truth)
        self.log("train/loss", loss, batch_size=len(truth))
        return loss

    def predict_step(self, batch: ImageBatch | SequenceBatch, batch_idx: int) -> Tensor:
        """Return the scaled numbers (B,), in eval mode."""
        with torch.no_grad(), eval_mode(self.net):
            return self(*(x.to(self.device) for x in batch[:-1])).float()

    def sample_scores(self, batch: ImageBatch | SequenceBatch, answers: dict[str, Any]) -> dict[str, Tensor]:
        """Return the `mae` and the `mse` of each sample, (B,), in the numbers' own unit."""
        error = (answers["prediction"].double() - batch[-1].cpu()) * self._std
        return {"mae": error.abs(), "mse": error.square()}

    @property
    def _std(self) -> float:
        """The deviation that the data divided the numbers by; 1 without a schema."""
        answer = self.schema and self.schema.answer
        return answer.std if isinstance(answer, Number) else 1.0

    def _update_scores(self, batch: ImageBatch | SequenceBatch) -> None:
        *inputs, truth = batch
        self.errors.update(self(*inputs).float(), truth)

    def _reset(self) -> None:
        self.errors.reset()

    def _scores(self) -> dict[str, Tensor]:
        scores = self.errors.compute()  # torchmetrics reduces over all ranks
        return {**scores, "mae": scores["mae"] * self._std, "rmse": scores["rmse"] * self._std}
