"""A training program as the Lightning + Hydra templates write it, for `scripts/bench start` to compare with.

It composes a config, builds everything by `instantiate`, and trains the demo's net on scikit-learn's digits with the
callbacks and the logger of such a template. It spares what a template imports besides, such as torchvision.
"""

import hydra
import torch
from lightning import LightningModule, seed_everything
from omegaconf import DictConfig, OmegaConf
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

CONFIG = {
    "seed": 0,
    "net": {
        "_target_": "leyden.nets.ConvNet",
        "image_shape": [1, 8, 8],
        "num_classes": 10,
        "input_size": 16,
        "width": 8,
    },
    "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-2},
    "trainer": {"_target_": "lightning.Trainer", "accelerator": "cpu", "max_epochs": 15, "max_steps": -1},
    "logger": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "."},
    "callbacks": [
        {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "monitor": "val/accuracy", "mode": "max"},
        {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor"},
        {"_target_": "lightning.pytorch.callbacks.RichProgressBar"},
    ],
}


class Classifier(LightningModule):
    """A classifier with a mean loss and an accuracy for each stage."""

    def __init__(self, net: torch.nn.Module, optimizer: object) -> None:
        super().__init__()
        self.net, self.optimizer = net, optimizer
        self.losses = torch.nn.ModuleDict({f"on_{stage}": MeanMetric() for stage in ("train", "val")})
        self.accuracies = torch.nn.ModuleDict({f"on_{stage}": MulticlassAccuracy(10) for stage in ("train", "val")})

    def _step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        image, label = batch
        logits = self.net(image)
        loss = F.cross_entropy(logits, label)
        self.losses[f"on_{stage}"](loss)
        self.accuracies[f"on_{stage}"](logits, label)
        self.log(f"{stage}/loss", self.losses[f"on_{stage}"], prog_bar=True)
        self.log(f"{stage}/accuracy", self.accuracies[f"on_{stage}"], prog_bar=True)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss and the accuracy of a batch."""
        self._step(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build the optimizer."""
        return self.optimizer(self.parameters())


def main(config: DictConfig) -> None:
    """Train once."""
    seed_everything(config.seed, verbose=False)
    pixels, labels = load_digits(return_X_y=True)
    images, targets = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    train, val = (
        DataLoader(TensorDataset(images[rows], targets[rows]), batch_size=64, shuffle=rows.start is None)
        for rows in (slice(None, 1294), slice(1294, 1438))
    )
    model = Classifier(hydra.utils.instantiate(config.net), hydra.utils.instantiate(config.optimizer))
    callbacks = [hydra.utils.instantiate(node) for node in config.callbacks]
    trainer = hydra.utils.instantiate(
        config.trainer, callbacks=callbacks, logger=hydra.utils.instantiate(config.logger)
    )
    trainer.fit(model, train, val)


if __name__ == "__main__":
    hydra.core.config_store.ConfigStore.instance().store("template", OmegaConf.create(CONFIG))
    hydra.main(version_base=None, config_name="template")(main)()
