"""Networks that forecast all steps at once: past (B, P, F) to future (B, H, K). F: K targets, other series, masks."""

from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from leyden.errors import UserError
from leyden.nets.arguments import Probability
from leyden.nets.recurrent import Recurrent, last_output


class RecurrentForecaster(nn.Module):
    """A recurrent stack over the past; a linear layer maps its last output to every step of the future.

    Series drift. A window is therefore forecast relative to its own level, which is its last values (`normalise=last`;
    Zeng et al. 2023, NLinear), or its mean and deviation (`instance`; Kim et al. 2022, RevIN without its affine part).
    `none` forecasts the values themselves. A step of the stack reads `segment` steps of the past at once (Lin et al.
    2023, SegRNN). With `per_series` the same network reads each target alone, without the other series. If `gaps` are
    filled, the input also holds a mask of the observed values for each of the `num_features` series. The other
    arguments are those of `Recurrent`.
    """

    def __init__(
        self,
        num_features: PositiveInt,
        num_targets: PositiveInt,
        past: PositiveInt,
        horizon: PositiveInt,
        hidden_size: PositiveInt = 64,
        normalise: Literal["none", "last", "instance"] = "last",
        segment: PositiveInt = 1,
        per_series: bool = False,
        gaps: Literal["error", "ffill", "interpolate"] = "error",
        output_dropout: Probability = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if past % segment:
            raise UserError(f"model.net.segment={segment} does not divide the {past} steps of the past")
        if kwargs.get("bidirectional"):
            raise UserError("model.net.bidirectional=true: a forecaster reads the past forwards; set it to false")
        self.num_targets, self.num_features, self.horizon = num_targets, num_features, horizon
        self.normalise, self.segment, self.per_series = normalise, segment, per_series
        width = 1 if per_series else num_features if gaps == "error" else 2 * num_features
        self.recurrent = Recurrent(segment * width, hidden_size, **kwargs)
        self.dropout = nn.Dropout(output_dropout)
        self.head = nn.Linear(self.recurrent.output_size, horizon * (1 if per_series else num_targets))

    def forward(self, past: Tensor) -> Tensor:
        """Return the forecasts (B, H, K) for pasts (B, P, F)."""
        series, masks = past[:, :, : self.num_features], past[:, :, self.num_features :]
        shift, scale = _shift_and_scale(series, self.normalise)  # (B, 1, num_features) each
        series = (series - shift) / scale
        x = torch.cat([series, masks], 2)
        if self.per_series:
            x = series[:, :, : self.num_targets].mT.flatten(0, 1)[:, :, None]  # (B K, P, 1)
        x = x.unflatten(1, (-1, self.segment)).flatten(2)  # (B, P / segment, segment F)
        out, _ = self.recurrent(x)
        y = self.head(self.dropout(last_output(out)))
        if self.per_series:
            y = y.unflatten(0, (-1, self.num_targets)).mT  # (B, H, K)
        else:
            y = y.unflatten(1, (self.horizon, self.num_targets))
        return y * scale[:, :, : self.num_targets] + shift[:, :, : self.num_targets]


class NLinear(nn.Module):
    """One linear map from the past to the future of every series, relative to its last value (Zeng et al. 2023)."""

    def __init__(self, num_targets: PositiveInt, past: PositiveInt, horizon: PositiveInt) -> None:
        super().__init__()
        self.num_targets = num_targets
        self.linear = nn.Linear(past, horizon)

    def forward(self, past: Tensor) -> Tensor:
        """Return the forecasts (B, H, K) for pasts (B, P, F)."""
        x = past[:, :, : self.num_targets]
        last_value = x[:, -1:]  # (B, 1, K)
        return self.linear((x - last_value).mT).mT + last_value


def _shift_and_scale(x: Tensor, normalise: str) -> tuple[Tensor, Tensor]:
    """Return the shift that is subtracted from a window (B, P, F), and the scale that divides it: (B, 1, F) each."""
    ones = x.new_ones(1, 1, x.shape[2])
    if normalise == "none":
        return torch.zeros_like(ones), ones
    if normalise == "last":
        return x[:, -1:], ones
    return x.mean(1, keepdim=True), (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
