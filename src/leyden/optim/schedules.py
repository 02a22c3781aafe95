"""Learning-rate schedules that torch lacks; models build them as `schedule(optimizer, total_steps=N)`."""

import math
from typing import Annotated

from pydantic import Field, PositiveInt
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Cosine(LRScheduler):
    """A linear warm-up, then half a cosine downwards (Loshchilov & Hutter 2017, equation 5 with one cycle).

    `warmup` is the share of `total_steps` over which the rate rises; `final` is the rate after the last
    step, as a share of the optimizer's.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: PositiveInt,
        warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        final: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        self.total_steps = total_steps
        self.warmup_steps = round(warmup * total_steps)
        self.final = final
        super().__init__(optimizer)  # takes the first step, which reads the attributes above

    def get_lr(self) -> list[float]:
        """Return the rate of each parameter group for step `last_epoch`, counted from 0."""
        return [rate * self._factor(self.last_epoch) for rate in self.base_lrs]

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps  # the rate of the first step is above zero
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


class Constant(LRScheduler):
    """The optimizer's learning rate, the same at every step."""

    def __init__(self, optimizer: Optimizer, total_steps: PositiveInt) -> None:
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Return the rate of each parameter group."""
        return list(self.base_lrs)
