"""Forecasting: a net that predicts the future of series from their past, always compared with naive forecasts."""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from leyden.batch import SeriesBatch
from leyden.figures import plots
from leyden.metrics.forecast import ForecastErrors
from leyden.models.model import EvaluatedModel, OptimizerCallable, ScheduleCallable, eval_mode, float32_at_least
from leyden.schema.series import Series

LOSS = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}
SUFFIXES = ("", "_persistence", "_seasonal")  # endings of the metrics: the net's, then the naive forecasts'
NUM_SHOWN = 4  # windows in a figure


class Forecaster(EvaluatedModel):
    """A net from the past of K series to their future, trained on the observed values.

    Logs `loss` in training; validation and test log `mse`, `mae`, `rmse` and `mase` in scaled units, the same for two
    naive forecasts (`mse_persistence`, which repeats the last values, and `mse_seasonal`, which repeats the last
    season), and `skill`, which is 1 - mse / the smaller mse of the two; if it is above 0, the net is better than both.
    The test also draws some forecasts in the series' own units. Further `metrics` are updated with the forecasts of the
    observed values and the values themselves, (N,) each, scaled.
    """

    monitor = ("val/mse", "min")

    def __init__(
        self,
        net: nn.Module,
        num_targets: PositiveInt,
        optimizer: OptimizerCallable,
        schedule: ScheduleCallable | None = None,
        loss: Literal["mse", "mae", "huber"] = "mse",
        metrics: dict[str, Metric] | None = None,
        parameter_groups: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(net, optimizer, schedule, metrics, parameter_groups)
        self.loss = loss
        self.num_targets = num_targets
        self.errors = nn.ModuleList(ForecastErrors(num_targets) for _ in SUFFIXES)
        self._windows: list[tuple[Tensor, dict[str, Tensor]]] = []  # the start, and the series (T, F) by name

    def forward(self, past: Tensor) -> Tensor:
        """Return the future (B, H, K) of pasts (B, P, F), scaled."""
        return self.net(past)

    def training_step(self, batch: SeriesBatch, batch_idx: int) -> Tensor:
        """Return the mean loss over the observed values."""
        losses = LOSS[self.loss](float32_at_least(self(batch.past)), batch.future, reduction="none")  # (B, H, K)
        # a batch without observed values has the loss 0
        loss = (losses * batch.observed).sum() / (len(batch.past) * batch.targets_per_row or 1)
        self.log("train/loss", loss, batch_size=len(batch.past))
        return loss

    def test_step(self, batch: SeriesBatch, batch_idx: int) -> None:
        """Update the errors with the batch, and keep its first window for the figure."""
        forecasts = self._update_scores(batch)
        series = {"past": batch.past, "truth": batch.future.where(batch.observed, torch.nan), **forecasts}
        self._windows.append((batch.start[0], {name: x[0].clone() for name, x in series.items()}))

    def predict_step(self, batch: SeriesBatch, batch_idx: int) -> Tensor:
        """Return the forecast (B, H, K) in scaled units; the net runs in eval mode."""
        with torch.no_grad(), eval_mode(self.net):
            return self(batch.past.to(self.device)).float()

    def on_test_epoch_end(self) -> None:
        """Log the errors over the whole split, and draw some of its windows."""
        super().on_test_epoch_end()
        self.log_figure("test/forecasts", self._draw_forecasts)

    def _update_scores(self, batch: SeriesBatch) -> dict[str, Tensor]:
        """Update the errors with a batch; return the three forecasts, (B, H, K) each."""
        forecasts = {
            "forecast": self(batch.past).float(),
            "persistence": batch.past[:, -1:, : batch.future.shape[2]].expand_as(batch.future),
            "seasonal": batch.seasonal,
        }
        for errors, forecast in zip(self.errors, forecasts.values(), strict=True):
            errors.update(forecast, batch.future, batch.observed, batch.naive_error[0])
        if self._metrics and batch.observed.any():
            self.measure(forecasts["forecast"][batch.observed], batch.future[batch.observed])
        return forecasts

    def _reset(self) -> None:
        for errors in self.errors:
            errors.reset()
        self._windows.clear()

    def _scores(self) -> dict[str, Tensor]:
        values = {
            f"{name}{suffix}": value
            for errors, suffix in zip(self.errors, SUFFIXES, strict=True)
            for name, value in errors.compute().items()  # torchmetrics reduces over all ranks
        }
        values["skill"] = 1 - values["mse"] / torch.minimum(values["mse_persistence"], values["mse_seasonal"])
        return values

    def _draw_forecasts(self) -> plots.Figure:
        indices = np.linspace(0, len(self._windows) - 1, min(NUM_SHOWN, len(self._windows))).round().astype(int)
        windows = []
        for start, series in (self._windows[i] for i in indices):
            targets = {name: x[:, : self.num_targets].float().cpu().numpy() for name, x in series.items()}
            title = f"from {self._format_time(int(start))}"
            windows.append((title, {name: self._unscale(x) for name, x in targets.items()}))
        return plots.forecasts(windows, self._target_names())

    @property
    def _series(self) -> Series | None:
        """The schema of the series, if the data have one."""
        field = self.schema and self.schema.answer
        return field if isinstance(field, Series) else None

    def _target_names(self) -> list[str]:
        series = self._series
        return series.columns[: self.num_targets] if series else [str(k) for k in range(self.num_targets)]

    def _format_time(self, start: int) -> str:
        return self._series.clock.text(np.array([start]))[0] if self._series else str(start)

    def _unscale(self, values: np.ndarray) -> np.ndarray:
        return self._series.unscale(values) if self._series else values
