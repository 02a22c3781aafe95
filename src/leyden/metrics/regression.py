"""Errors of predicted numbers, also relative to predicting their mean."""

import torch
from torch import Tensor
from torchmetrics import Metric


class RegressionErrors(Metric):
    """MAE, RMSE and R2 of numbers, and the skill, 1 - MSE / MSE0, where MSE0 is the error of always predicting 0.

    For numbers that are scaled by the training samples, 0 stands for the training mean.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("absolute", "squared", "truth", "truth_squared", "count"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add scaled predictions and true numbers, (B,) each."""
        error = prediction - truth
        self.absolute += error.abs().sum()
        self.squared += error.square().sum()
        self.truth += truth.sum()
        self.truth_squared += truth.square().sum()
        self.count += len(truth)

    def compute(self) -> dict[str, Tensor]:
        """Return the errors, in scaled units."""
        mean = self.truth / self.count
        variance = self.truth_squared / self.count - mean.square()
        mse = self.squared / self.count
        skill = 1 - self.squared / self.truth_squared
        return {"mae": self.absolute / self.count, "rmse": mse.sqrt(), "r2": 1 - mse / variance, "skill": skill}
