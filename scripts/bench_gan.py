"""The cost of a GAN's training step: hand-written loops, Lightning's textbook GAN, and leyden.

All train the same fully connected nets on one batch, with the same loss and the same settings of Adam. `best loop` is
the fastest that we can write by hand: fakes are generated once for both nets, the discriminator takes real and fake in
one pass and is frozen in the generator's turn, and Adam is fused. `plain loop` is the usual one: fakes are generated
once and detached, with the default Adam. `textbook` is Lightning's example of manual optimization
(generative_adversarial_net.py): fakes are generated twice, optimizers are toggled, and a value is logged for each.
Rounds and clocks are those of `scripts/bench step`.
"""

import argparse
import logging
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_step import EPOCHS, Loader
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import softplus

from leyden.batch import ImageBatch
from leyden.config.compose import compose
from leyden.distributed.signals import Stop
from leyden.models.gan.gan import GAN
from leyden.nets import mlp_gan
from leyden.run.directory import Run
from leyden.training.assemble import build

SHAPE, LATENT, BATCH = (1, 28, 28), 64, 128
Nets = tuple[Any, Any]


def nets(device: str) -> Nets:
    """Return the generator and the discriminator."""
    return mlp_gan.MLPGenerator(SHAPE, LATENT).to(device), mlp_gan.MLPDiscriminator(SHAPE).to(device)


def adam(parameters: object, **options: Any) -> torch.optim.Optimizer:
    """Return Adam with the settings of every variant."""
    return torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999), **options)


def best_loop(generator: nn.Module, discriminator: nn.Module, loader: Loader, folder: Path) -> None:
    """Train without computing anything twice."""
    opt_g, opt_d = (adam(net.parameters(), fused=True) for net in (generator, discriminator))
    for _ in range(EPOCHS):
        for batch in loader:
            fake = generator(torch.randn(BATCH, LATENT, device=loader.device))
            real_logits, fake_logits = discriminator(torch.cat([batch.image, fake.detach()])).chunk(2)
            opt_d.zero_grad()
            (softplus(-real_logits).mean() + softplus(fake_logits).mean()).backward()
            opt_d.step()
            discriminator.requires_grad_(False)
            opt_g.zero_grad()
            softplus(-discriminator(fake)).mean().backward()
            opt_g.step()
            discriminator.requires_grad_(True)


def plain_loop(generator: nn.Module, discriminator: nn.Module, loader: Loader, folder: Path) -> None:
    """Train as the DCGAN tutorials do."""
    opt_g, opt_d = (adam(net.parameters()) for net in (generator, discriminator))
    ones, zeros = torch.ones(BATCH, device=loader.device), torch.zeros(BATCH, device=loader.device)
    for _ in range(EPOCHS):
        for batch in loader:
            opt_d.zero_grad()
            bce(discriminator(batch.image), ones).backward()
            fake = generator(torch.randn(BATCH, LATENT, device=loader.device))
            bce(discriminator(fake.detach()), zeros).backward()
            opt_d.step()
            opt_g.zero_grad()
            bce(discriminator(fake), ones).backward()
            opt_g.step()


class Textbook(LightningModule):
    """Lightning's example without its evaluation."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = generator, discriminator

    def training_step(self, batch: ImageBatch) -> None:
        """Train the generator, then the discriminator."""
        image = batch.image
        opt_g, opt_d = self.optimizers()
        z = torch.randn(image.shape[0], LATENT).type_as(image)
        valid = torch.ones(image.size(0)).type_as(image)
        self.toggle_optimizer(opt_g)
        g_loss = bce(self.discriminator(self.generator(z)), valid)
        self.log("train/g_loss", g_loss, prog_bar=True)
        opt_g.zero_grad()
        self.manual_backward(g_loss)
        opt_g.step()
        self.untoggle_optimizer(opt_g)
        self.toggle_optimizer(opt_d)
        real_loss = bce(self.discriminator(image), valid)
        fake_loss = bce(self.discriminator(self.generator(z).detach()), torch.zeros(image.size(0)).type_as(image))
        d_loss = (real_loss + fake_loss) / 2
        self.log("train/d_loss", d_loss, prog_bar=True)
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()
        self.untoggle_optimizer(opt_d)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list]:
        """Return both optimizers."""
        return [adam(self.generator.parameters()), adam(self.discriminator.parameters())], []


def textbook(generator: nn.Module, discriminator: nn.Module, loader: Loader, folder: Path) -> None:
    """Train with the stock Trainer."""
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator=loader.device,
        devices=1,
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Textbook(generator, discriminator), loader)


def leyden(
    generator: nn.Module, discriminator: nn.Module, loader: Loader, folder: Path, ema: float | None = None
) -> None:
    """Train with leyden's default configuration, with its logging, progress, heartbeat and checkpoints."""
    composition = compose(
        ["data=digits", f"trainer.max_epochs={EPOCHS}", "name=bench", f"trainer.accelerator={loader.device}"]
    )
    run = Run.create(composition, Path(tempfile.mkdtemp(dir=folder)))
    with Stop() as stop:
        parts = build(run, run.config, stop)
        model = GAN(generator, discriminator, lambda groups: adam(groups, fused=True), ema=ema)
        parts.trainer.fit(model, loader)
    assert parts.trainer.fit_loop.epoch_loop.tight


def leyden_average(generator: nn.Module, discriminator: nn.Module, loader: Loader, folder: Path) -> None:
    """Train with leyden and an averaged generator, which no other variant has."""
    leyden(generator, discriminator, loader, folder, ema=0.999)


VARIANTS: dict[str, Callable[[Any, Any, Loader, Path], None]] = {
    "best loop": best_loop,
    "plain loop": plain_loop,
    "leyden": leyden,
    "leyden, average": leyden_average,
    "textbook": textbook,
}


def main(argv: list[str]) -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench gan", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    batch = ImageBatch(torch.rand(BATCH, *SHAPE, device=options.device) * 2 - 1, torch.zeros(BATCH, dtype=torch.long))
    microseconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for number in range(options.rounds):
        order = list(VARIANTS.items())
        for variant, run in order if number % 2 else reversed(order):
            torch.manual_seed(0)
            loader = Loader(batch, options.steps)
            with tempfile.TemporaryDirectory() as folder:
                run(*nets(options.device), loader, Path(folder))
            microseconds[variant].append(loader.seconds / options.steps * 1e6)
    _report(microseconds)


def _report(microseconds: dict[str, list[float]]) -> None:
    print(f"{'':16}{'us/step':>9}{'speed x best':>14}{'x textbook':>12}{'fastest x best':>16}")
    best, textbook_times = microseconds["best loop"], microseconds["textbook"]
    for variant, times in microseconds.items():
        bases = (best, textbook_times)
        to_best, to_textbook = (statistics.median(b / t for b, t in zip(base, times, strict=True)) for base in bases)
        fastest_ratio = min(best) / min(times)
        print(f"{variant:16}{statistics.median(times):9.0f}{to_best:14.2f}{to_textbook:12.2f}{fastest_ratio:16.2f}")
