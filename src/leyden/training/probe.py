"""A short training in this process that leaves no files behind, for the measurements of `leyden find`."""

import tempfile

from lightning import Callback, LightningDataModule, LightningModule, Trainer

from leyden.config.run_config import RunConfig
from leyden.training import loop
from leyden.training.assemble import build_trainer


def fit(
    model: LightningModule, data: LightningDataModule | None, config: RunConfig, steps: int, callbacks: list[Callback]
) -> Trainer:
    """Train on one device for some steps, or until a callback stops the training; validate and save nothing."""
    node = {key: value for key, value in config["trainer"].items() if not key.startswith(("max_", "min_"))}
    node |= {"devices": 1, "num_nodes": 1, "strategy": "auto", "max_epochs": -1, "max_steps": steps}
    node |= {"limit_val_batches": 0, "num_sanity_val_steps": 0, "enable_model_summary": False}
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            node,
            model,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        loop.install(trainer, config["seed"], config["accumulate"])
        trainer.fit(model, datamodule=data)
    return trainer
