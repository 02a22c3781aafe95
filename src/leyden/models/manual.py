"""Manual optimization: several nets in one model, each with its own optimizer, that are trained in turns.

This module does what Lightning leaves to every user's code. One batch counts as one step, whichever nets learn from it.
A turn freezes the other nets, so that no gradients are computed for them. Gradients are averaged over the ranks once,
and clipped after they are unscaled. The GradScaler is updated once per step, and each net has its own schedule.
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

from leyden.batch import split_microbatches
from leyden.errors import UserError
from leyden.models.model import Model, OptimizerCallable, ScheduleCallable


class Learner(NamedTuple):
    """The parameters of one net with their optimizer and schedule."""

    parameters: list[nn.Parameter]
    optimizer: Optimizer
    scheduler: LRScheduler | None


class ManualModel(Model):
    """A model of several nets; a subclass defines `take_turns(batch)`, in which they learn `with self.turn(name)`.

    Every net has its own optimizer and schedule, built by `optimizer` and `schedule`. `lr_ratios` multiplies the
    learning rates of the nets that it names; a net with `periods` n learns on every n-th batch. For batches that do not
    fit into memory, `parts` splits a batch into `accumulate` microbatches, whose gradients add up to the batch's.
    `gradient_clip_val` bounds the norm of each net's gradient. `parameter_groups` are those of `Model`, for all nets: a
    parameter is called `net.NAME.…`. Random numbers come from `normal` and `uniform`: they are a function of (`seed`,
    step, sample), the same for any number of ranks.

    Logs the norm of each net's gradient, `train/grad_norm_<net>`, in its last turn of each logging interval.
    """

    automatic_optimization = False
    averages_gradients = True  # the model averages them over the ranks, so the strategy must not
    lockstep = False

    def __init__(
        self,
        nets: dict[str, nn.Module],
        optimizer: OptimizerCallable,
        schedule: ScheduleCallable | None = None,
        *,
        lr_ratios: dict[str, float] | None = None,
        periods: dict[str, int] | None = None,
        accumulate: PositiveInt = 1,
        gradient_clip_val: PositiveFloat | None = None,
        seed: NonNegativeInt = 0,
        parameter_groups: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(nn.ModuleDict(nets), optimizer, schedule, parameter_groups)
        self.accumulate = accumulate
        self.gradient_clip_val = gradient_clip_val
        self._lr_ratios, self._periods = lr_ratios or {}, periods or {}
        self._learners: dict[str, Learner] = {}
        self._base_seed = int(np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1)[0])
        self._generator: torch.Generator | None = None

    @property
    def optimizer_names(self) -> list[str]:
        """The names of the nets, in the order of their optimizers."""
        return list(self._learners)

    @property
    def cycle(self) -> int:
        """The number of steps after which the turns repeat."""
        return math.lcm(*self._periods.values())

    @abstractmethod
    def take_turns(self, batch: Any) -> None:
        """Train every net that is due on a batch."""

    def is_due(self, name: str) -> bool:
        """Return whether a net learns on the current batch."""
        return self.global_step % self._periods.get(name, 1) == 0

    def configure_optimizers(self) -> Any:
        """Build the optimizer and the schedule of each net."""
        self._learners = {}
        for name, net in self.net.items():
            period = self._periods.get(name, 1)
            ratio = self._lr_ratios.get(name, 1.0)
            optimizer, scheduler = self.build_optimizer(net.parameters(), lr_ratio=ratio, period=period)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            self._learners[name] = Learner(parameters, optimizer, scheduler)
        learners = self._learners.values()
        schedulers = [{"scheduler": s, "interval": "step"} for _, _, s in learners if s is not None]
        return [learner.optimizer for learner in learners], schedulers

    def on_fit_start(self) -> None:
        """Refuse a trainer whose loop does not count the steps, and a strategy that averages the gradients again."""
        if not type(self.trainer.fit_loop.epoch_loop).__module__.startswith("leyden."):
            raise UserError(
                f"{type(self).__name__} needs leyden's loop: call leyden.training.loop.install(trainer, seed) first"
            )
        if self.trainer.strategy.model is not self:
            raise UserError(f"{type(self).__name__} averages its gradients itself: use leyden.training.UnwrappedDDP()")

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Train the nets in turns, with the random numbers of this step."""
        if self._generator is None:
            self._generator = torch.Generator(self.device)
        # a Weyl sequence, as in leyden.training.loop, which repeats after 2**32 steps
        self._generator.manual_seed((self._base_seed + self.global_step * 0x9E3779B1) & 0xFFFFFFFF)
        self.take_turns(batch)
        scaler = self._scaler()
        if scaler and any(map(self.is_due, self._learners)):
            scaler.update()
        # average the running statistics of batch norms, so that every rank evaluates and saves the same nets
        self._average_over_ranks([buffer for buffer in self.net.buffers() if buffer.is_floating_point()])

    @contextmanager
    def turn(self, name: str) -> Iterator[Callable[[Tensor], None]]:
        """Train one net in a `with` block, which returns a function to call with each loss.

        The gradients of several losses add up. The other nets are frozen: gradients flow through them, but none are
        computed for their parameters.
        """
        learners = [learner for other, learner in self._learners.items() if other != name]
        others = [p for learner in learners for p in learner.parameters if p.requires_grad]
        parameters, optimizer, scheduler = self._learners[name]
        for parameter in others:
            parameter.requires_grad_(False)
        optimizer.zero_grad()
        try:
            yield self.manual_backward
        finally:
            for parameter in others:
                parameter.requires_grad_(True)
        self._step_optimizer(name, parameters, optimizer)
        if scheduler is not None:
            scheduler.step()

    def parts(self, batch: Any) -> list[tuple[Any, float]]:
        """Split a batch into microbatches, each with its share of the loss."""
        return split_microbatches(batch, self.accumulate)

    def normal(self, count: int, *shape: int) -> Tensor:
        """Draw (count, *shape) standard normal numbers: this rank's rows of what the step draws for all ranks."""
        return self._draw_random(torch.randn, count, *shape)

    def uniform(self, count: int, *shape: int) -> Tensor:
        """Draw (count, *shape) uniform numbers in [0, 1): this rank's rows of what the step draws for all ranks."""
        return self._draw_random(torch.rand, count, *shape)

    def _draw_random(self, draw: Callable[..., Tensor], count: int, *shape: int) -> Tensor:
        world_size, rank = self.trainer.world_size, self.trainer.global_rank
        all_numbers = draw(world_size * count, *shape, generator=self._generator, device=self.device)
        return all_numbers[rank * count : (rank + 1) * count]

    def _step_optimizer(self, name: str, parameters: list[nn.Parameter], optimizer: Optimizer) -> None:
        """Take an optimizer step, after the gradients are averaged over the ranks, unscaled and clipped."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._average_over_ranks(gradients)
        scaler = self._scaler()
        if scaler:
            scaler.unscale_(optimizer)
        interval, period = self.trainer.log_every_n_steps, self._periods.get(name, 1)
        is_logged = (self.global_step + period) // interval > self.global_step // interval  # last turn of the interval
        if self.gradient_clip_val or is_logged:
            norm = get_total_norm(gradients)
            if self.gradient_clip_val:
                clip_grads_with_norm_(parameters, self.gradient_clip_val, norm)
            if is_logged:
                self.log(f"train/grad_norm_{name}", norm)
        for callback in self.trainer.callbacks:
            callback.on_before_optimizer_step(self.trainer, self, optimizer)
        self.on_before_optimizer_step(optimizer)
        if scaler:
            scaler.step(optimizer)
        else:
            optimizer.step()

    @torch.no_grad()
    def _average_over_ranks(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over the ranks, in one collective."""
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
