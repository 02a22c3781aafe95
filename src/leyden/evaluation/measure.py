"""The Python API behind `leyden evaluate`: measure a run's checkpoint on a split of its data, or of other data."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.model_helpers import is_overridden

from leyden.checkpoints.choose import choose
from leyden.config.composition import Composition
from leyden.config.instantiate import instantiate
from leyden.config.locations import in_project_folder
from leyden.config.output_paths import with_paths_in
from leyden.config.run_config import RunConfig
from leyden.contracts import HasFingerprint
from leyden.errors import UserError
from leyden.evaluation.answers import check_predicts
from leyden.evaluation.load import load
from leyden.evaluation.predictions import Predictions
from leyden.files import write_atomically
from leyden.files.formats import EVALUATION
from leyden.loggers.record import Record
from leyden.metric_names import named_metrics
from leyden.run.directory import Run, step_of
from leyden.training import loop
from leyden.training.assemble import build_callbacks
from leyden.training.seeding import seed_everything


class Figures(Record):
    """A local record of figures only, since `measure` writes the metrics itself."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Do nothing."""


@in_project_folder()
def measure(
    run: Run,
    composition: Composition,
    folder: Path,
    checkpoint_name: str | None = None,
    split: str = "test",
    save_predictions: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint on the split `test` or `val` on one device, without changing the run.

    `composition` is the run's config, perhaps with other data; `checkpoint_name` is best, last or step-N. Figures go to
    `folder`, and so do the returned facts as metrics.json, and predictions.npz on request.

    Raises:
        UserError: if there is no such checkpoint, or the model lacks the step for the split.
    """
    checkpoint = choose(run, checkpoint_name)
    model, data = load(composition.config, checkpoint)
    _check_model(model, data, composition.config, split, save_predictions)
    folder.mkdir(parents=True, exist_ok=True)
    predictions = [Predictions()] if save_predictions else []
    trainer = _build_trainer(composition.config, folder, predictions)
    loop.install(trainer, composition.config["seed"])
    trainer.fit_loop.epoch_loop.measured_step = step_of(checkpoint)
    seed_everything(composition.config["seed"])  # a `setup` that draws its splits must draw those of the training
    (trainer.test if split == "test" else trainer.validate)(model, data, verbose=False)
    facts = {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "checkpoint": checkpoint.name,
        "split": split,
        "overrides": composition.overrides,
        "data": data.fingerprint() if isinstance(data, HasFingerprint) else None,
        "metrics": named_metrics(trainer.callback_metrics),
    }
    for callback in predictions:
        sha256 = ((facts["data"] or {}).get(split) or {}).get("sha256", "")
        callback.save(folder / "predictions.npz", split, sha256, checkpoint.name)
    write_atomically(folder / "metrics.json", json.dumps(EVALUATION.stamp(facts), indent=2) + "\n")
    return facts


def _check_model(
    model: LightningModule, data: LightningDataModule | None, config: RunConfig, split: str, save_predictions: bool
) -> None:
    step, target = "test_step" if split == "test" else "validation_step", config["model"]["_target_"]
    if not is_overridden(step, model, LightningModule):
        raise UserError(f"--split={split}: {target} has no {step}")
    if not is_overridden(f"{split}_dataloader", data or model):
        raise UserError(f"--split={split}: {(config['data'] or config['model'])['_target_']} has no {split}_dataloader")
    if save_predictions:
        check_predicts(model, f"--save-predictions: {target}")


def _build_trainer(config: RunConfig, folder: Path, predictions: list[Predictions]) -> Trainer:
    """Build the trainer of a config for one device, with its callbacks except those that save checkpoints."""
    callbacks = build_callbacks(config, folder)
    devices = config["trainer"].get("devices")
    return instantiate(
        {
            "enable_model_summary": False,
            **with_paths_in(config["trainer"], folder),
            "devices": devices[:1]
            if isinstance(devices, list)
            else 1,  # metrics do not depend on the number of devices
            "num_nodes": 1,
            "strategy": "auto",
        },
        "trainer",
        logger=[Figures(folder)],
        callbacks=[*(callback for callback in callbacks if not isinstance(callback, Checkpoint)), *predictions],
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=folder,
    )
