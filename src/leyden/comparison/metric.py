"""The direction and the unit of a metric, determined from its name and from the configs of the runs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from leyden.config.check import expectations
from leyden.config.directions import direction, monitor_of_config
from leyden.errors import UserError

SHARES = {"accuracy", "precision", "recall", "f1", "iou", "dice", "auc", "auroc", "coverage"}
HIGHER_IS_BETTER = {*SHARES, "bleu", "chrf", "skill", "density", "modes", "r2", "psnr", "ssim"}
LOWER_IS_BETTER = {"loss", "mse", "mae", "rmse", "mase", "mape", "ece", "brier", "error", "nll", "nats", "bits"}
LOWER_IS_BETTER |= {"perplexity", "fid", "kid", "wer", "cer", "ter"}
COMPARABLE_METRICS = {*SHARES, "ece", "bleu", "chrf", "skill", "mase", "r2"}  # comparable across data sets


class Metric(NamedTuple):
    """A metric's name, whether more of it is better, and whether it is a share, which lies between 0 and 1."""

    name: str
    higher: bool
    share: bool

    @classmethod
    def of(cls, name: str, higher: bool | None, values: np.ndarray, configs: Sequence[dict]) -> "Metric":
        """Describe a metric of which some values are known; `higher` is None if the user did not write a direction.

        Raises:
            UserError: if it is not known whether more of it is better.
        """
        share = bool(_words(name) & SHARES) and values.min() >= 0 and values.max() <= 1
        return cls(name, more_is_better(name, configs) if higher is None else higher, share)

    @property
    def factor(self) -> int:
        """The factor that turns its values into shown numbers: 100 for a share, which is shown in per cent."""
        return 100 if self.share else 1

    @property
    def comparable(self) -> bool:
        """Whether values from different data sets can be compared."""
        return bool(_words(self.name) & COMPARABLE_METRICS)


def more_is_better(name: str, configs: Sequence[dict]) -> bool:
    """Return whether more of a metric is better. The runs' configs and models decide, else the metric's name.

    Raises:
        UserError: if none of these gives the direction.
    """
    kind = name.partition("/")[2]
    for config in configs:
        monitor = monitor_of_config(config)
        if monitor and monitor[0].partition("/")[2] == kind:
            return monitor[1] == "max"
        if mode := direction(config, name):
            return mode == "max"
        for expectation in expectations(config):
            if expectation.get("metric") == name:
                return expectation.get("at_least") is not None
    words = _words(name)
    if bool(words & HIGHER_IS_BETTER) == bool(words & LOWER_IS_BETTER):
        raise UserError(f"--metric {name}: is more of it better? write {name}:higher or {name}:lower")
    return bool(words & HIGHER_IS_BETTER)


def _words(name: str) -> set[str]:
    return set(name.partition("/")[2].split("_"))
