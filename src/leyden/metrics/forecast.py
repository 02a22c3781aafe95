"""Errors of forecasts, also relative to the seasonal-naive forecast."""

import torch
from torch import Tensor
from torchmetrics import Metric


class ForecastErrors(Metric):
    """MSE, MAE and RMSE over all observed values of K series, and MASE (Hyndman & Koehler 2006), the mean over series.

    The scaled error of a series is its mean absolute error over that of the seasonal-naive forecast on the training
    part: a value below 1 is better than that forecast. MASE leaves out series whose seasonal-naive error is zero or
    unknown.
    """

    full_state_update = False

    def __init__(self, num_targets: int) -> None:
        super().__init__()
        for name in ("absolute", "squared", "count"):
            self.add_state(name, torch.zeros(num_targets), dist_reduce_fx="sum")
        self.add_state("naive_error", torch.zeros(num_targets), dist_reduce_fx="max")  # every rank has the same

    def update(self, forecast: Tensor, future: Tensor, observed: Tensor, naive_error: Tensor) -> None:
        """Add forecasts and futures (B, H, K) where `observed` (B, H, K) is true; `naive_error` is (K,)."""
        error = (forecast - future).masked_fill(~observed, 0)
        self.absolute += error.abs().sum((0, 1))
        self.squared += error.square().sum((0, 1))
        self.count += observed.sum((0, 1))
        self.naive_error = naive_error

    def compute(self) -> dict[str, Tensor]:
        """Return the four errors."""
        mse = self.squared.sum() / self.count.sum()
        is_scaled = (self.count > 0) & (self.naive_error > 0)
        scaled_errors = (self.absolute / self.count / self.naive_error)[is_scaled]
        return {
            "mse": mse,
            "mae": self.absolute.sum() / self.count.sum(),
            "rmse": mse.sqrt(),
            "mase": scaled_errors.mean(),
        }
