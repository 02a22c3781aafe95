"""The cost of a training step: a bare PyTorch loop, Fabric, a Trainer as in common templates, and leyden.

All train the same model with the same optimizer on the same batch; only the code around the step differs. Each
variant runs in turn, in every round, in alternating order; a round is timed between two requests for
a batch, so set-up and evaluation do not count. Figures are medians over rounds of the CPU time of a step (with
`--device cuda` of its wall time, the device synchronised at both ends);
`least over` is the difference between the fastest rounds, which other work on the machine disturbs least.
"""

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from leyden.batch import ImageBatch
from leyden.config.compose import compose
from leyden.distributed.signals import Stop
from leyden.models.image_classifier import ImageClassifier
from leyden.nets.cnn import ConvNet
from leyden.run.directory import Run
from leyden.training.assemble import build

WARMUP_STEPS = 30  # steps before the clock starts
EPOCHS = 2  # the last one is measured: an epoch must not slow down the next


class Loader:
    """Yields one resident batch `WARMUP_STEPS + steps` times, and records the clocks."""

    resident = True

    def __init__(self, batch: ImageBatch, steps: int) -> None:
        self.batch, self.steps = batch, steps
        self.device = batch.image.device.type
        self.seconds = 0.0

    def seek(self, epoch: int, batch: int) -> None:
        """Do nothing: every epoch is the same."""

    def __len__(self) -> int:
        return WARMUP_STEPS + self.steps + 1

    def __iter__(self) -> Iterator[ImageBatch]:
        for _ in range(WARMUP_STEPS):
            yield self.batch
        began = self._clock()
        for _ in range(self.steps):
            yield self.batch
        self.seconds = self._clock() - began
        yield self.batch

    def _clock(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


class Null(nn.Module):
    """A net with 8 parameters, whose cost is negligible."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, 8)."""
        return image * self.weight


class Template(LightningModule):
    """A LightningModule as in the Lightning + Hydra templates."""

    def __init__(self, net: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.net = net
        self.train_loss = MeanMetric()
        self.train_accuracy = MulticlassAccuracy(num_classes)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Return the loss, and log it with the accuracy."""
        logits = self.net(batch.image)
        loss = F.cross_entropy(logits, batch.label)
        self.train_loss(loss)
        self.train_accuracy(logits, batch.label)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of all variants."""
        return optimizer(self.parameters())


def optimizer(parameters: object) -> torch.optim.Optimizer:
    """Return the fused AdamW of every variant."""
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True)


def bare(net: nn.Module, loader: Loader, folder: Path) -> None:
    """Train in a plain PyTorch loop."""
    opt = optimizer(net.parameters())
    for _ in range(EPOCHS):
        for batch in loader:
            loss = F.cross_entropy(net(batch.image), batch.label)
            opt.zero_grad()
            loss.backward()
            opt.step()


def fabric(net: nn.Module, loader: Loader, folder: Path) -> None:
    """Train in the same loop with Fabric."""
    runtime = Fabric(accelerator=loader.device, devices=1)
    model, opt = runtime.setup(net, optimizer(net.parameters()))
    for _ in range(EPOCHS):
        for batch in loader:
            loss = F.cross_entropy(model(batch.image), batch.label)
            opt.zero_grad()
            runtime.backward(loss)
            opt.step()


def template(net: nn.Module, loader: Loader, folder: Path) -> None:
    """Train with the stock Trainer, a rich bar, LR monitor, checkpoint, CSV and two torchmetrics."""
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator=loader.device,
        devices=1,
        logger=CSVLogger(folder),
        callbacks=[RichProgressBar(), LearningRateMonitor(), ModelCheckpoint(folder)],
        enable_model_summary=False,
    )
    classes = net(loader.batch.image).shape[1]
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.fit(Template(net, classes), loader)


def leyden(net: nn.Module, loader: Loader, folder: Path) -> None:
    """Train with leyden's default configuration, with its logging, progress, heartbeat and checkpoints."""
    composition = compose(
        ["data=digits", f"trainer.max_epochs={EPOCHS}", "name=bench", f"trainer.accelerator={loader.device}"]
    )
    run = Run.create(composition, Path(tempfile.mkdtemp(dir=folder)))
    with Stop() as stop:
        parts = build(run, run.config, stop)
        classes = net(loader.batch.image).shape[1]
        parts.trainer.fit(ImageClassifier(net, classes, optimizer), loader)
    assert parts.trainer.fit_loop.epoch_loop.tight


VARIANTS: dict[str, Callable[[nn.Module, Loader, Path], None]] = {
    "bare loop": bare,
    "Fabric": fabric,
    "leyden": leyden,
    "template": template,
}


def nets(device: str) -> dict[str, tuple[Callable[[], nn.Module], ImageBatch]]:
    """Return a constructor and a batch for each model, by title."""
    small, large = torch.randn(4, 8, device=device), torch.randn(128, 1, 28, 28, device=device)
    label = torch.randint(8, (128,), device=device)
    return {
        "null model, batch 4": (Null, ImageBatch(small, label[:4])),
        "ConvNet, batch 128": (lambda: ConvNet((1, 28, 28), 10), ImageBatch(large, label)),
    }


def main(argv: list[str]) -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=300, help="steps of the null model; a third for the ConvNet")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for name, (make_net, batch) in nets(options.device).items():
        steps = options.steps if "null" in name else options.steps // 3
        microseconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for number in range(options.rounds):
            order = list(VARIANTS.items())
            for variant, run in order if number % 2 else reversed(order):
                torch.manual_seed(0)
                loader = Loader(batch, steps)
                with tempfile.TemporaryDirectory() as folder:
                    run(make_net().to(options.device), loader, Path(folder))
                microseconds[variant].append(loader.seconds / steps * 1e6)
        _report(name, microseconds)


def _report(name: str, microseconds: dict[str, list[float]]) -> None:
    print(f"\n{name}\n{'':12}{'us/step':>10}{'over bare':>12}{'x bare':>9}{'least over':>13}")
    base = microseconds["bare loop"]
    for variant, times in microseconds.items():
        overhead = statistics.median(t - b for t, b in zip(times, base, strict=True))
        ratio = statistics.median(t / b for t, b in zip(times, base, strict=True))
        least_overhead = min(times) - min(base)
        print(f"{variant:12}{statistics.median(times):10.0f}{overhead:+12.0f}{ratio:9.2f}{least_overhead:+13.0f}")
