"""Generative adversarial networks: a generator of pictures, and the discriminator that it learns from."""

import logging
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from leyden.batch import ImageBatch
from leyden.errors import UserError
from leyden.models.adversarial import Game, LossName, Round
from leyden.models.average import Average
from leyden.models.diffaugment import Change
from leyden.models.manual import ManualModel

log = logging.getLogger(__name__)

CHUNK = 250  # pictures made at a time outside training


class GAN(ManualModel):
    """A generator z (B, Z) -> image in [-1, 1], and a discriminator image -> logits (B,), that learn in turns.

    Each batch is one step: the discriminator learns, and on one batch of `d_steps` the generator, from the same
    pictures. `num_classes` makes both class-conditional: they are given the labels. `loss` is one of
    `leyden.models.adversarial.LOSSES`. `r1` and `r2` weigh half the squared gradient of the logits at real and at fake
    pictures, `gradient_penalty` its distance from norm 1 between them; on one batch of `penalty_every`, then so many
    times as strong (Karras et al. 2020, appendix B), in float32. `augment` is what the discriminator sees all pictures
    through (DiffAugment, Zhao et al. 2020). `ema` is the decay of the generator's average, which makes all pictures
    outside training. `lr_ratio` is the discriminator's learning rate over the generator's (Heusel et al. 2017).
    `compile` compiles both nets; passes with penalties stay as they are, since compiled code has no second
    derivative. The other arguments are those of `leyden.models.manual.ManualModel`.

    Logs `train/loss_d`, `train/loss_g`, `train/penalty`, and `train/discriminator_wins`, the share of pairs in which
    the real picture gets the higher logit.
    """

    from_data = ("classes", "mean", "std")

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler] | None = None,
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
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        nets = {"discriminator": discriminator, "generator": generator}
        rates, periods = {"discriminator": lr_ratio}, {"generator": d_steps}
        super().__init__(nets, optimizer, schedule, lr_ratios=rates, periods=periods, **kwargs)
        for name, net in nets.items():
            if net.num_classes != num_classes:
                raise UserError(f"model.{name}.num_classes={net.num_classes}, but model.num_classes={num_classes}")
        self.num_classes = num_classes
        self.average = Average(generator, ema) if ema is not None else None
        self.classes: list[str] | None = None
        self.mean: list[float] | None = None
        self.std: list[float] | None = None
        together = not any(isinstance(module, _BatchNorm) for module in discriminator.modules())
        self.game = Game(loss, r1, r2, gradient_penalty, augment or (), together)
        self._penalty_every, self._d_steps = penalty_every, d_steps
        if compile:
            generator.compile()
            discriminator.compile()

    @property
    def generator(self) -> Any:
        """The generator that learns."""
        return self.net["generator"]

    @property
    def discriminator(self) -> Any:
        """The discriminator."""
        return self.net["discriminator"]

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return pictures (B, C, H, W) in [0, 1] of the averaged generator."""
        generator = self.average.net if self.average else self.generator
        return (generator(z, label).float().clamp(-1, 1) + 1) / 2

    @torch.no_grad()
    def sample_images(self, count: int, label: int | None = None, seed: int = 0) -> Iterator[Tensor]:
        """Make `count` pictures of a class, or of all in turn: batches (B, C, H, W) in [0, 1] on the CPU.

        Picture i is a function of (`seed`, i), however many there are.
        """
        training = self.training
        self.eval()
        z = torch.from_numpy(
            np.random.default_rng(seed).standard_normal((count, self.generator.latent_dim), np.float32)
        )
        for rows in torch.arange(count).split(CHUNK):
            yield self(z[rows].to(self.device), self._labels(rows, label)).cpu()
        self.train(training)

    def _labels(self, rows: Tensor, label: int | None) -> Tensor | None:
        if not self.num_classes:
            return None
        return (rows % self.num_classes if label is None else torch.full_like(rows, label)).to(self.device)

    def setup(self, stage: str) -> None:
        """Learn how the data's pictures are normalised."""
        mean, std = (torch.tensor(v or [0.5], device=self.device).view(-1, 1, 1) for v in (self.mean, self.std))
        scale, shift = 2 * std, 2 * mean - 1
        self._scaling = None if (scale == 1).all() and (shift == 0).all() else (scale, shift)

    def take_turns(self, batch: ImageBatch) -> None:
        """Let the discriminator learn, then the generator."""
        parts = self.parts(self._round(batch))
        makes = self.due("generator")
        # made once for both turns, unless the parts' graphs would have to lie in memory together
        fake = self._fake(parts[0]) if makes and len(parts) == 1 else None
        with self.turn("discriminator") as backward:
            for part in parts:
                shown = self._fake(part) if fake is None else fake.detach()
                backward(self._discriminator_loss(part, shown) / len(parts))
        if not makes:
            return
        with self.turn("generator") as backward:
            for part in parts:
                shown = self._fake(part) if fake is None else fake
                loss = self.game.generator_loss(self.discriminator, part, shown)
                self.log("train/loss_g", loss, batch_size=len(shown))
                backward(loss / len(parts))
        if self.average:
            self.average.update(self.generator, self.global_step // self._d_steps)

    def _round(self, batch: ImageBatch) -> Round:
        image, label = batch
        count = len(image)
        if self._scaling is not None:
            scale, shift = self._scaling
            image = image * scale + shift
        if self.num_classes and label.ndim == 2:
            raise UserError("data.mixup and data.cutmix mix the classes that model.num_classes asks for: set them to 0")
        return Round(
            real=image,
            label=label if self.num_classes else None,
            z=self.normal(count, self.generator.latent_dim),
            numbers=self.uniform(count, 4, self.game.num_numbers),
            mix=self.uniform(count),
        )

    def _fake(self, part: Round) -> Tensor:
        return self.generator(part.z, part.label)

    def _discriminator_loss(self, part: Round, fake: Tensor) -> Tensor:
        if self.game.penalised and self.global_step % self._penalty_every == 0:
            with torch.autocast(self.device.type, enabled=False):  # in float16 the gradients would vanish
                loss, penalty, *logits = self.game.penalised_loss(self.discriminator.forward, part, fake.float())
            self.log("train/penalty", penalty, batch_size=len(fake))
            total = loss + self._penalty_every * penalty
        else:
            total, _, *logits = self.game.discriminator_loss(self.discriminator, part, fake)
            loss = total
        self.log("train/loss_d", loss, batch_size=len(fake))
        real_logits, fake_logits = (x.detach() for x in logits)
        self.log(
            "train/discriminator_wins", (real_logits > fake_logits).count_nonzero() / len(fake), batch_size=len(fake)
        )
        return total
