"""`leyden evaluate RUN [overrides]`: measure a run's checkpoint, on its data or on others."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from leyden.commands.arguments import Arguments
from leyden.config.compose import override
from leyden.config.composition import Composition
from leyden.config.instantiate import instantiate
from leyden.config.locations import relative_to_cwd
from leyden.config.output_paths import with_paths_in
from leyden.console import console, escaped_text, logging_to, put
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.run.directory import Run, new_run_id
from leyden.run.find import find_run
from leyden.run.summary import title_of
from leyden.signals import Stop


def main(arguments: list[str]) -> int:
    """Print the metrics, and leave them and the figures in the run's evaluations/."""
    parser = Arguments(
        "evaluate", "Measure a run's checkpoint on a split, on one device. The run itself stays as it is."
    )
    parser.add_argument("run", metavar="RUN", help="a path, last, or a unique part of a run's name")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the run's config")
    parser.add_argument("--checkpoint", metavar="best|last|step-N", help="by default the best, else the last")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--save-predictions", action="store_true", help="of every sample, for leyden compare --samples")
    options = parser.parse_intermixed_args(arguments)
    run = find_run(options.run)
    composition = override(run.manifest.get("raw") or run.config, options.overrides)
    folder = run.path / "evaluations" / new_run_id()
    with logging_to(folder / "log.txt"), Stop():
        facts = measure(run, composition, folder, options.checkpoint, options.split, options.save_predictions)
    measured = title_of(run, run.path / "checkpoints" / facts["checkpoint"])
    table = Table(title=escaped_text(measured), title_justify="left", box=None, show_header=False, pad_edge=False)
    for name, value in sorted(facts["metrics"].items()):
        table.add_row(escaped_text(name), f"{value:.4f}")
    console.print(table)
    before, now = (
        (run.manifest.get("data") or {}).get(options.split),
        (facts["data"] or {}).get(options.split),
    )
    if before and before != now:
        print(f"measured on other data than the run's own {options.split} split")
    put(f"{facts['checkpoint']} of {run.name}: {relative_to_cwd(folder)}")
    return 0


def measure(
    run: Run, composition: Composition, folder: Path, which: str | None, split: str, save_predictions: bool = False
) -> dict[str, Any]:
    """Run one pass over the split; return what metrics.json in `folder` then holds, beside predictions.npz if asked."""
    from lightning import LightningModule  # seconds, with torch
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.utilities.model_helpers import is_overridden

    from leyden.callbacks.predictions import Predictions
    from leyden.evaluation import load
    from leyden.loggers.record import Record
    from leyden.training import loop

    class Figures(Record):
        """Keeps what the model draws; the values are written at the end."""

        def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
            """Leave them to metrics.json."""

    checkpoint = load.choose_checkpoint(run, which)
    model, data = load.load(composition.config, checkpoint)
    step = "test_step" if split == "test" else "validation_step"
    if not is_overridden(step, model, LightningModule):
        raise UserError(f"--split={split}: {composition.config['model']['_target_']} has no {step}")
    if save_predictions and not is_overridden("predict_step", model, LightningModule):
        raise UserError(f"--save-predictions: {composition.config['model']['_target_']} has no predict_step")
    folder.mkdir(parents=True, exist_ok=True)
    callbacks = [
        instantiate(with_paths_in(node, folder), f"callbacks.{name}")
        for name, node in (composition.config["callbacks"] or {}).items()
        if node
    ]
    predictions = [Predictions()] if save_predictions else []
    devices = composition.config["trainer"].get("devices")
    trainer = instantiate(
        {
            "enable_model_summary": False,
            **with_paths_in(composition.config["trainer"], folder),
            "devices": devices[:1] if isinstance(devices, list) else 1,  # each sample counts once on any number
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
    loop.install(trainer, composition.config["seed"])
    trainer.fit_loop.epoch_loop.measured = int(checkpoint.stem.removeprefix("step-"))
    (trainer.test if split == "test" else trainer.validate)(model, data, verbose=False)
    facts = {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "checkpoint": checkpoint.name,
        "split": split,
        "overrides": composition.overrides,
        "data": data.fingerprint() if hasattr(data, "fingerprint") else None,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }
    for kept in predictions:
        sha256 = ((facts["data"] or {}).get(split) or {}).get("sha256", "")
        kept.save(folder / "predictions.npz", split, sha256, checkpoint.name)
    write_atomically(folder / "metrics.json", json.dumps(facts, indent=2) + "\n")
    return facts
