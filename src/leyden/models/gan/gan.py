"""Generative adversarial networks: a generator of pictures, and the discriminator that it learns from."""

import copy
import logging
import math
from typing import Annotated, Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leyden.batch import ImageBatch
from leyden.errors import UserError
from leyden.models.gan.adversarial import AdversarialLoss, Inputs, LossName
from leyden.models.gan.diffaugment import Change
from leyden.models.gan.picture_model import PictureModel
from leyden.models.model import OptimizerCallable, ScheduleCallable

log = logging.getLogger(__name__)


class GAN(PictureModel):
    """A generator z (B, Z) -> image in [-1, 1], and a discriminator image -> logits (B,), that learn in turns.

    Each batch is one step: the discriminator learns on every batch, the generator on every `d_steps`-th. `num_classes`
    makes both class-conditional: they get the labels. `loss` is one of `leyden.models.gan.adversarial.LOSSES`. `r1` and
    `r2` weigh half the squared gradient of the logits at real and fake pictures, `gradient_penalty` the squared
    distance of its norm from 1 at mixtures of both; they apply on every `penalty_every`-th batch, multiplied by that
    number (Karras et al. 2020, appendix B), in float32. `augment` names the changes of DiffAugment (Zhao et al. 2020)
    that are made to all pictures before the discriminator sees them. `ema` is the decay of the generator's average,
    which generates all pictures outside training. `lr_ratio` is the discriminator's learning rate over the generator's
    (Heusel et al. 2017). `channels_last` stores weights as (O, H, W, I), which convolutions prefer on most hardware.
    The other arguments are those of `leyden.models.manual.ManualModel`.

    Every validation makes `num_samples` pictures and compares them with the real training pictures in the features of
    `feature`, a network of conf/feature. It warns when the discriminator always wins, and when the pictures vary less
    than `collapse_below` times as much as the data's.

    Logs `train/loss_d`, `train/loss_g`, `train/penalty`, and `train/discriminator_wins`, the share of pairs in which
    the real picture gets the higher logit; validation and test add `diversity` and the metrics of
    `leyden.metrics.generation.NAMES` with the feature network's name, the test also the same of real pictures
    (`_real`).
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        optimizer: OptimizerCallable,
        schedule: ScheduleCallable | None = None,
        *,
        num_classes: PositiveInt | None = None,
        loss: LossName = "non_saturating",
        r1: NonNegativeFloat = 0.0,
        r2: NonNegativeFloat = 0.0,
        gradient_penalty: NonNegativeFloat = 0.0,
        penalty_every: PositiveInt = 1,
        d_steps: PositiveInt = 1,
        lr_ratio: PositiveFloat = 1.0,
        augment: list[Change] | None = None,
        ema: Annotated[float, Field(ge=0, lt=1)] | None = 0.999,
        feature: Any = None,
        num_samples: Annotated[int, Field(ge=10)] = 10_000,
        collapse_below: Annotated[float, Field(ge=0, lt=1)] = 0.3,
        channels_last: bool = False,
        **kwargs: Any,
    ) -> None:
        nets = {"discriminator": discriminator, "generator": generator}
        rates, periods = {"discriminator": lr_ratio}, {"generator": d_steps}
        evaluation = {"num_classes": num_classes, "feature": feature, "num_samples": num_samples}
        super().__init__(nets, optimizer, schedule, lr_ratios=rates, periods=periods, **evaluation, **kwargs)
        for name, net in nets.items():
            if net.num_classes != num_classes:
                raise UserError(f"model.{name}.num_classes={net.num_classes}, but model.num_classes={num_classes}")
        self.average = Average(generator, ema) if ema is not None else None
        one_pass = not any(isinstance(module, _BatchNorm) for module in discriminator.modules())
        self.adversarial_loss = AdversarialLoss(loss, r1, r2, gradient_penalty, augment or (), one_pass)
        if feature is not None:
            feature.check(generator.image_shape)
        self._penalty_every, self._d_steps, self._collapse_below = penalty_every, d_steps, collapse_below
        self._win_rates: tuple[Any, int] = (0.0, 0)  # sum and number of win rates since the last validation
        if channels_last:
            self.to(memory_format=torch.channels_last)

    @property
    def generator(self) -> Any:
        """The generator that is trained."""
        return self.net["generator"]

    @property
    def discriminator(self) -> Any:
        """The discriminator."""
        return self.net["discriminator"]

    @property
    def evaluated_generator(self) -> Any:
        """The averaged generator, if weights are averaged, else the one that is trained."""
        return self.average.net if self.average else self.generator

    @property
    def cycle(self) -> int:
        """The number of steps after which turns and penalties repeat."""
        return math.lcm(super().cycle, self._penalty_every)

    def on_initial_weights(self) -> None:
        """Begin the average at the generator's weights."""
        self.average = Average(self.generator, self.average.decay) if self.average else None

    def take_turns(self, batch: ImageBatch) -> None:
        """Train the discriminator, then the generator."""
        parts = self.parts(self._draw_inputs(batch))
        generator_is_due = self.is_due("generator")
        # both turns share the pictures, unless the graphs of several parts would have to be in memory together
        fake = self._make_fake(parts[0][0]) if generator_is_due and len(parts) == 1 else None
        with self.turn("discriminator") as backward:
            for part, share in parts:
                image = self._make_fake(part) if fake is None else fake.detach()
                backward(self._discriminator_loss(part, image) * share)
        if not generator_is_due:
            return
        with self.turn("generator") as backward:
            for part, share in parts:
                image = self._make_fake(part) if fake is None else fake
                loss = self.adversarial_loss.generator_loss(self.discriminator, part, image)
                self.log("train/loss_g", loss, batch_size=len(image))
                backward(loss * share)

    def on_train_batch_end(self, outputs: Any, batch: ImageBatch, batch_idx: int) -> None:
        """Update the average if the generator has learned on this batch."""
        step = self.global_step - 1
        if self.average and step % self._d_steps == 0:
            self.average.update(self.generator, step // self._d_steps)

    def _draw_inputs(self, batch: ImageBatch) -> Inputs:
        image, label = batch
        if self.num_classes and label.ndim == 2:
            raise UserError("data.mixup and data.cutmix mix the classes that model.num_classes asks for: set them to 0")
        real = self._in_tanh_range(image)
        return Inputs(
            real=real,
            label=label if self.num_classes else None,
            z=self.normal(len(real), self.generator.latent_dim).to(real),
            numbers=self.uniform(len(real), 4, self.adversarial_loss.numbers_per_image),
            mix=self.uniform(len(real)).to(real),
        )

    def _make_fake(self, part: Inputs) -> Tensor:
        return self.generator(part.z, part.label)

    def _discriminator_loss(self, part: Inputs, fake: Tensor) -> Tensor:
        if self.adversarial_loss.has_penalty and self.global_step % self._penalty_every == 0:
            with torch.autocast(self.device.type, enabled=False):  # float16 gradients would vanish
                losses = self.adversarial_loss.penalised_loss(self.discriminator.forward, part, fake.to(part.real))
            self.log("train/penalty", losses.penalty, batch_size=len(fake))
            total = losses.loss + self._penalty_every * losses.penalty
        else:
            losses = self.adversarial_loss.discriminator_loss(self.discriminator, part, fake)
            total = losses.loss
        self.log("train/loss_d", losses.loss, batch_size=len(fake))
        win_rate = (losses.real_logits.detach() > losses.fake_logits.detach()).count_nonzero() / len(fake)
        self.log("train/discriminator_wins", win_rate, batch_size=len(fake))
        self._win_rates = (self._win_rates[0] + win_rate, self._win_rates[1] + 1)
        return total

    @rank_zero_only
    def _warn_of_failure(self, diversity: float) -> None:
        """Warn when the discriminator always wins, or the generator collapses."""
        total, count = self._win_rates
        rate, self._win_rates = float(total) / max(1, count), (0.0, 0)
        if rate > 0.99:
            log.warning("the discriminator wins %.1f %% of the time: the generator may learn nothing more", 100 * rate)
        if diversity < self._collapse_below:
            log.warning("pictures vary %.0f %% as much as the data's: the generator is collapsing", 100 * diversity)


class Average(nn.Module):
    """A copy of a net whose weights are the exponential moving average of the net's (Polyak & Juditsky 1992).

    After step t it moves towards the net by 1 - min(`decay`, (1 + t) / (10 + t)), so that the initial weights are soon
    forgotten. Running statistics of batch norms are averaged, too.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Move towards `net`, which has taken `step` steps, without waiting for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, values = ([*n.parameters(), *n.buffers()] for n in (self.net, net))
        float_pairs = [(a, b) for a, b in zip(averages, values, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in float_pairs], [b for _, b in float_pairs], 1 - decay)
        for a, b in zip(averages, values, strict=True):
            if not a.is_floating_point():  # counters
                a.copy_(b)
