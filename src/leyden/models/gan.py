"""Generative adversarial networks: a generator of pictures, and the discriminator that it learns from."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from leyden.batch import ImageBatch
from leyden.errors import UserError
from leyden.figures import plots
from leyden.models import gallery
from leyden.models.adversarial import Game, LossName, Round
from leyden.models.average import Average
from leyden.models.diffaugment import Change
from leyden.models.manual import ManualModel
from leyden.models.quality import Quality

log = logging.getLogger(__name__)

CHUNK = 100  # pictures made at a time outside training; fewer cost as much, for the rest of a chunk is thrown away
FEW = 1000  # are made where nothing but their diversity is measured


class GAN(ManualModel):
    """A generator z (B, Z) -> image in [-1, 1], and a discriminator image -> logits (B,), that learn in turns.

    Each batch is one step: the discriminator learns, and on one batch of `d_steps` the generator, from the same
    pictures. `num_classes` makes both class-conditional: they are given the labels. `loss` is one of
    `leyden.models.adversarial.LOSSES`. `r1` and `r2` weigh half the squared gradient of the logits at real and at fake
    pictures, `gradient_penalty` its distance from norm 1 between them; on one batch of `penalty_every`, then so many
    times as strong (Karras et al. 2020, appendix B), in float32. `augment` is what the discriminator sees all pictures
    through (DiffAugment, Zhao et al. 2020). `ema` is the decay of the generator's average, which makes all pictures
    outside training. `lr_ratio` is the discriminator's learning rate over the generator's (Heusel et al. 2017).
    `channels_last` stores weights as (O, H, W, I), which convolutions prefer on most hardware. The other
    arguments are those of `leyden.models.ManualModel`.

    Every validation makes `num_samples` pictures and measures them by `feature`, a network of conf/feature, against the
    real training pictures. It warns when the discriminator always wins, and when the pictures vary less than
    `collapse_below` times as much as the data's.

    Logs `train/loss_d`, `train/loss_g`, `train/penalty`, and `train/discriminator_wins`, the share of pairs in which
    the real picture gets the higher logit; `diversity` and the names of `leyden.metrics.generation.NAMES`, with the
    feature network's name, in validation and test; in the test also those of real test pictures, ending in `_real`.
    """

    from_data = ("classes", "mean", "std", "examples", "fingerprint")

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
        feature: Any = None,
        num_samples: Annotated[int, Field(ge=10)] = 10_000,
        collapse_below: Annotated[float, Field(ge=0, lt=1)] = 0.3,
        channels_last: bool = False,
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
        together = not any(isinstance(module, _BatchNorm) for module in discriminator.modules())
        self.game = Game(loss, r1, r2, gradient_penalty, augment or (), together)
        self.quality = Quality(feature, num_samples)
        if feature is not None:
            feature.check(generator.image_shape)
            self.monitor = (f"val/fid{feature.suffix}", "min")
        self.classes: list[str] | None = None
        self.mean: list[float] | None = None
        self.std: list[float] | None = None
        self.examples: Callable[[str], Iterable[ImageBatch]] | None = None
        self.fingerprint: Callable[[], dict[str, dict]] | None = None
        self._penalty_every, self._d_steps, self._collapse_below = penalty_every, d_steps, collapse_below
        self._seen: Tensor | None = None  # real pictures of an evaluation
        self._wins: tuple[Any, int] = (0.0, 0)  # the discriminator's shares since the last validation, and how many
        if channels_last:
            self.to(memory_format=torch.channels_last)

    @property
    def generator(self) -> Any:
        """The generator that learns."""
        return self.net["generator"]

    @property
    def discriminator(self) -> Any:
        """The discriminator."""
        return self.net["discriminator"]

    @property
    def cycle(self) -> int:
        """After how many steps turns and penalties are the same again."""
        return math.lcm(super().cycle, self._penalty_every)

    @property
    def feature(self) -> Any:
        """The network that pictures are measured by; a run's manifest keeps its record."""
        return self.quality.feature

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return pictures (B, C, H, W) in [0, 1] of the averaged generator."""
        generator = self.average.net if self.average else self.generator
        z = z.to(next(generator.parameters()).dtype)  # float16 where trainer.precision says so
        return (generator(z, label).float().clamp(-1, 1) + 1) / 2

    def sample_images(self, count: int, label: int | None = None, seed: int = 0) -> Iterator[Tensor]:
        """Make `count` pictures of a class, or of all in turn: batches (B, C, H, W) in [0, 1] on the CPU.

        Picture i is a function of (`seed`, i), however many there are: on one machine to the bit.
        """
        return (image.cpu() for image in self._made(range(count), label, seed))

    def setup(self, stage: str) -> None:
        """Learn how the data's pictures are normalised."""
        device = self.trainer.strategy.root_device  # where the model is about to be
        mean, std = (torch.tensor(v or [0.5], device=device).view(-1, 1, 1) for v in (self.mean, self.std))
        scale, shift = 2 * std, 2 * mean - 1
        self._scaling = None if (scale == 1).all() and (shift == 0).all() else (scale, shift)
        if self.feature is not None:
            self.feature.to(device)
        if self.num_classes and self.classes and len(self.classes) != self.num_classes:
            raise UserError(
                f"model.num_classes={self.num_classes}, but the data have {len(self.classes)} classes: "
                "write model.num_classes='${data.num_classes}'"
            )

    def take_turns(self, batch: ImageBatch) -> None:
        """Let the discriminator learn, then the generator."""
        parts = self.parts(self._round(batch))
        makes = self.due("generator")
        # made once for both turns, unless the parts' graphs would have to lie in memory together
        fake = self._fake(parts[0][0]) if makes and len(parts) == 1 else None
        with self.turn("discriminator") as backward:
            for part, share in parts:
                shown = self._fake(part) if fake is None else fake.detach()
                backward(self._discriminator_loss(part, shown) * share)
        if not makes:
            return
        with self.turn("generator") as backward:
            for part, share in parts:
                shown = self._fake(part) if fake is None else fake
                loss = self.game.generator_loss(self.discriminator, part, shown)
                self.log("train/loss_g", loss, batch_size=len(shown))
                backward(loss * share)

    def on_train_batch_end(self, outputs: Any, batch: ImageBatch, batch_idx: int) -> None:
        """Move the average, if the generator has learned."""
        step = self.global_step - 1
        if self.average and step % self._d_steps == 0:
            self.average.update(self.generator, step // self._d_steps)

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Look at real pictures."""
        self._look_at(batch, measured=False)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Look at real pictures, and measure them as generated ones will be: the floor."""
        self._look_at(batch, measured=True)

    def on_validation_epoch_end(self) -> None:
        """Make pictures, measure and show them; warn if the game is lost."""
        diversity = self._evaluate("val")
        if not self.trainer.sanity_checking:
            self.log_image("samples", self._grid)
            self._warn(diversity)

    def on_test_epoch_end(self) -> None:
        """Make pictures, measure and show them."""
        self._evaluate("test")
        self._draw_all()

    def on_train_end(self) -> None:
        """End the film of the samples."""
        self.log_animation("samples")

    def _reset(self) -> None:
        self.quality.reset()
        self._seen = None

    def _look_at(self, batch: ImageBatch, measured: bool) -> None:
        image = self._shown(batch.image)
        self.quality.see_real(image, measured)
        if self._seen is None:
            self._seen = image[: gallery.NUM_SHOWN]

    def _round(self, batch: ImageBatch) -> Round:
        image, label = batch
        if self.num_classes and label.ndim == 2:
            raise UserError("data.mixup and data.cutmix mix the classes that model.num_classes asks for: set them to 0")
        real = self._scaled(image)
        return Round(
            real=real,
            label=label if self.num_classes else None,
            z=self.normal(len(real), self.generator.latent_dim).to(real),
            numbers=self.uniform(len(real), 4, self.game.num_numbers),
            mix=self.uniform(len(real)).to(real),
        )

    def _scaled(self, image: Tensor) -> Tensor:
        """Return the data's pictures with pixels in [-1, 1]."""
        if self._scaling is None:
            return image
        scale, shift = (x.to(image.dtype) for x in self._scaling)
        return image * scale + shift

    def _shown(self, image: Tensor) -> Tensor:
        """Return the data's pictures with pixels in [0, 1]."""
        return (self._scaled(image) + 1) / 2

    def _fake(self, part: Round) -> Tensor:
        return self.generator(part.z, part.label)

    def _discriminator_loss(self, part: Round, fake: Tensor) -> Tensor:
        if self.game.penalised and self.global_step % self._penalty_every == 0:
            with torch.autocast(self.device.type, enabled=False):  # in float16 the gradients would vanish
                verdict = self.game.penalised_loss(self.discriminator.forward, part, fake.to(part.real))
            self.log("train/penalty", verdict.penalty, batch_size=len(fake))
            total = verdict.loss + self._penalty_every * verdict.penalty
        else:
            verdict = self.game.discriminator_loss(self.discriminator, part, fake)
            total = verdict.loss
        self.log("train/loss_d", verdict.loss, batch_size=len(fake))
        wins = (verdict.real_logits.detach() > verdict.fake_logits.detach()).count_nonzero() / len(fake)
        self.log("train/discriminator_wins", wins, batch_size=len(fake))
        self._wins = (self._wins[0] + wins, self._wins[1] + 1)
        return total

    @torch.no_grad()
    def _made(self, rows: range, label: int | None = None, seed: int = 0) -> Iterator[Tensor]:
        """Make the pictures number `rows`, a few at a time, where the model is.

        Picture i is always made as row i % CHUNK of a batch of CHUNK pictures: for another batch size, or in another
        place of the batch, a kernel may round differently.
        """
        generator = self.average.net if self.average else self.generator
        stop = max(rows.stop, rows.start + 1)  # of no pictures, too, the result is a tensor, which has their shape
        starts = range(rows.start - rows.start % CHUNK, stop, CHUNK)
        shape = (starts[-1] + CHUNK, self.generator.latent_dim)
        z = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32)).to(self.device)
        for start in starts:
            number = torch.arange(start, start + CHUNK, device=self.device)
            labels = None
            if self.num_classes:
                labels = number % self.num_classes if label is None else torch.full_like(number, label)
            training = generator.training
            generator.eval()
            image = self(z[start : start + CHUNK], labels)
            generator.train(training)
            yield image[max(rows.start - start, 0) : rows.stop - start]

    def _evaluate(self, stage: str) -> float:
        """Make, measure and log; return the diversity."""
        world_size, rank = self.trainer.world_size, self.trainer.global_rank
        count = self.quality.num_samples if self.feature else FEW
        count = CHUNK if self.trainer.sanity_checking else count
        for image in self._made(range(count * rank // world_size, count * (rank + 1) // world_size)):
            self.quality.see_fake(image)
        self.quality.refer_to(self._real_pictures, self._digest)
        values = {"diversity": self.quality.diversity(), **self.quality.scores()}
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()})
        return values["diversity"]

    def _grid(self) -> np.ndarray:
        """Draw the first pictures of all, the same latents at every step."""
        images = torch.cat(list(self._made(range(gallery.shown(self.num_classes)))))
        return gallery.grid(images, self.num_classes, self.classes)

    def _draw_all(self) -> None:
        """Draw what helps to judge a finished model."""
        first = torch.cat(list(self._made(range(gallery.NUM_SHOWN))))
        self.log_figure("test/samples", self._grid)
        if self._seen is not None:
            self.log_figure("test/real", partial(gallery.real_and_generated, self._seen, first))
        self.log_figure("test/interpolation", self._interpolation)
        if self.examples is not None:
            self.log_figure("test/neighbours", lambda: gallery.neighbours(first, self._real_pictures()))
        if shares := self.quality.class_shares():
            fake, real = (share.cpu().numpy() for share in shares)
            names = self.feature.classes or [str(k) for k in range(len(fake))]
            self.log_figure("test/classes", lambda: plots.class_histogram(fake, real, names))

    @torch.no_grad()
    def _interpolation(self) -> np.ndarray:
        def make(z: Tensor) -> Tensor:
            rows = torch.arange(len(z), device=self.device) // gallery.STEPS
            return self(z, rows % self.num_classes if self.num_classes else None)

        return gallery.interpolation(make, self.generator.latent_dim, self.device)

    def _real_pictures(self) -> Iterator[Tensor]:
        if self.examples is None:
            raise UserError("feature needs data that show their examples, as those of leyden.data.images do")
        return (self._shown(image) for image, _ in self.examples("train"))

    def _digest(self) -> str:
        assert self.fingerprint is not None
        return self.fingerprint()["train"]["sha256"]

    @rank_zero_only
    def _warn(self, diversity: float) -> None:
        """Say so when the game is lost."""
        total, count = self._wins
        wins, self._wins = float(total) / max(1, count), (0.0, 0)
        if wins > 0.99:
            log.warning("the discriminator wins %.1f %% of the time: the generator may learn nothing more", 100 * wins)
        if diversity < self._collapse_below:
            log.warning("pictures vary %.0f %% as much as the data's: the generator is collapsing", 100 * diversity)
