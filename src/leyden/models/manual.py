"""Manual optimization: several nets in one model, each with its own optimizer, that take turns at learning.

What Lightning leaves to everybody's own code is here once: one batch is one step, whatever learns in it; a turn
freezes the other nets, so that nothing is computed for them; gradients are averaged over the ranks once, and clipped
after the loss scale is taken out; the scaler is updated once a step; each net has its own schedule.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from leyden.batch import cut
from leyden.errors import UserError
from leyden.models.model import Model


class Learner(NamedTuple):
    """What moves one net."""

    parameters: list[nn.Parameter]
    optimizer: Optimizer
    scheduler: LRScheduler | None


class ManualModel(Model):
    """A model of several nets; a subclass writes `take_turns(batch)`, in which each learns `with self.turn(name)`.

    Every net has an optimizer of its own, made by `optimizer`, whose steps `schedule` counts. `lr_ratios` multiplies
    the rate of the nets it names; those that `periods` names learn on one batch of so many. A batch is taken in
    `accumulate` parts, one after another, whose gradients add up to those of the whole: for batches that do not fit
    into memory; `parts` cuts it. `gradient_clip_val` bounds the norm of each net's gradient. Random numbers come from
    `normal` and `uniform`: they are a function of (`seed`, step, sample), the same for any number of ranks.

    Logs the norm of each net's gradient, `train/grad_norm_<net>`, at its last turn before loggers are told.
    """

    automatic_optimization = False
    averages_gradients = True  # over the ranks, so that no strategy need
    lockstep = False

    def __init__(
        self,
        nets: dict[str, nn.Module],
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler] | None = None,
        *,
        lr_ratios: dict[str, float] | None = None,
        periods: dict[str, int] | None = None,
        accumulate: PositiveInt = 1,
        gradient_clip_val: PositiveFloat | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(nn.ModuleDict(nets), optimizer, schedule)
        self.accumulate = accumulate
        self.gradient_clip_val = gradient_clip_val
        self._lr_ratios, self._periods = lr_ratios or {}, periods or {}
        self._learners: dict[str, Learner] = {}
        self._base = int(np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1)[0])
        self._generator: torch.Generator | None = None

    @property
    def optimizer_names(self) -> list[str]:
        """What the optimizers are called, in their order."""
        return list(self._learners)

    @property
    def cycle(self) -> int:
        """After how many steps the turns are the same again."""
        return math.lcm(*self._periods.values())

    @abstractmethod
    def take_turns(self, batch: Any) -> None:
        """Train every net whose turn it is on a batch."""

    def due(self, name: str) -> bool:
        """Tell whether a net learns on the batch at hand."""
        return self.global_step % self._periods.get(name, 1) == 0

    def configure_optimizers(self) -> Any:
        """Build each net's optimizer and schedule."""
        self._learners = {}
        for name, net in self.net.items():
            every = self._periods.get(name, 1)
            ratio = self._lr_ratios.get(name, 1.0)
            optimizer, scheduler = self.build_optimizer(net.parameters(), lr_ratio=ratio, every=every)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self._learners[name] = Learner(parameters, optimizer, scheduler)
        made = self._learners.values()
        schedulers = [{"scheduler": s, "interval": "step"} for _, _, s in made if s is not None]
        return [learner.optimizer for learner in made], schedulers

    def on_fit_start(self) -> None:
        """Refuse a trainer that would count no steps, and a strategy that would average gradients a second time."""
        if not type(self.trainer.fit_loop.epoch_loop).__module__.startswith("leyden."):
            raise UserError(
                f"{type(self).__name__} needs leyden's loop: call leyden.training.loop.install(trainer, seed) first"
            )
        if self.trainer.strategy.model is not self:
            raise UserError(
                f"{type(self).__name__} averages its gradients itself: use leyden.training.strategies.UnwrappedDDP()"
            )

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Let the nets take their turns, on random numbers that belong to this step."""
        self._reseed()
        self.take_turns(batch)
        scaler = self._scaler()
        if scaler and any(map(self.due, self._learners)):
            scaler.update()
        # statistics of batch norms: every rank is to evaluate, and to save, the same nets
        self._average([buffer for buffer in self.net.buffers() if buffer.is_floating_point()])

    @contextmanager
    def turn(self, name: str) -> Iterator[Callable[[Tensor], None]]:
        """Let one net learn from what is backpropagated with the function that `with` gives.

        The gradients of several calls add up. The other nets are frozen: only what flows through them is computed.
        """
        others = [p for other, learner in self._learners.items() if other != name for p in learner.parameters]
        parameters, optimizer, scheduler = self._learners[name]
        for parameter in others:
            parameter.requires_grad_(False)
        optimizer.zero_grad()
        try:
            yield self.manual_backward
        finally:
            for parameter in others:
                parameter.requires_grad_(True)
        self._step(name, parameters, optimizer)
        if scheduler is not None:
            scheduler.step()

    def parts(self, batch: Any) -> list[tuple[Any, float]]:
        """Cut a batch into the parts that are taken one after another, each with its share of the loss."""
        return cut(batch, self.accumulate)

    def normal(self, count: int, *shape: int) -> Tensor:
        """Draw (count, *shape) standard normal numbers, this rank's rows of those that belong to the step."""
        return self._random(torch.randn, count, *shape)

    def uniform(self, count: int, *shape: int) -> Tensor:
        """Draw (count, *shape) numbers from [0, 1), this rank's rows of those that belong to the step."""
        return self._random(torch.rand, count, *shape)

    def _random(self, draw: Callable[..., Tensor], count: int, *shape: int) -> Tensor:
        world_size, rank = self.trainer.world_size, self.trainer.global_rank
        everyone = draw(world_size * count, *shape, generator=self._generator, device=self.device)
        return everyone[rank * count : (rank + 1) * count]

    def _reseed(self) -> None:
        if self._generator is None:
            self._generator = torch.Generator(self.device)
        # a Weyl sequence, as in leyden.loop: 2**32 steps until it repeats
        self._generator.manual_seed((self._base + self.global_step * 0x9E3779B1) & 0xFFFFFFFF)

    def _step(self, name: str, parameters: list[nn.Parameter], optimizer: Optimizer) -> None:
        """Take an optimizer step along the gradients, once they are those of all ranks, unscaled and clipped."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._average(gradients)
        scaler = self._scaler()
        if scaler:
            scaler.unscale_(optimizer)
        interval, period = self.trainer.log_every_n_steps, self._periods.get(name, 1)
        logged = (self.global_step + period) // interval > self.global_step // interval  # the last turn in it
        if self.gradient_clip_val or logged:
            norm = get_total_norm(gradients)
            if self.gradient_clip_val:
                clip_grads_with_norm_(parameters, self.gradient_clip_val, norm)
            if logged:
                self.log(f"train/grad_norm_{name}", norm)
        for callback in self.trainer.callbacks:
            callback.on_before_optimizer_step(self.trainer, self, optimizer)
        self.on_before_optimizer_step(optimizer)
        if scaler:
            scaler.step(optimizer)
        else:
            optimizer.step()

    @torch.no_grad()
    def _average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over the ranks, in one message."""
        if self.trainer.world_size == 1 or not tensors:
            return
        flat = torch.cat([x.reshape(-1) for x in tensors])
        clock = self.trainer.fit_loop.epoch_loop.clock
        clock.enter("communication")
        torch.distributed.all_reduce(flat)
        clock.enter("forward_backward")
        means = (flat / self.trainer.world_size).split([x.numel() for x in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def _scaler(self) -> Any:
        return getattr(self.trainer.precision_plugin, "scaler", None)
