"""The direction and the unit of a metric, determined from its name and from the configs of the runs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from leyden.config.check import expectations
from leyden.config.directions import SHARE_WORDS, direction, direction_of_name, monitor_of_config, words
from leyden.errors import UserError

COMPARABLE_METRICS = {*SHARE_WORDS, "ece", "bleu", "chrf", "skill", "mase", "r2"}  # comparable across data sets


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
        share = bool(words(name) & SHARE_WORDS) and values.min() >= 0 and values.max() <= 1
        return cls(name, more_is_better(name, configs) if higher is None else higher, share)

    @property
    def factor(self) -> int:
        """The factor that turns its values into shown numbers: 100 for a share, which is shown in per cent."""
        return 100 if self.share else 1

    @property
    def comparable(self) -> bool:
        """Whether values from different data sets can be compared."""
        return bool(words(self.name) & COMPARABLE_METRICS)


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
    mode = direction_of_name(name)
    if mode is None:
        raise UserError(f"--metric {name}: is more of it better? write {name}:higher or {name}:lower")
    return mode == "max"
