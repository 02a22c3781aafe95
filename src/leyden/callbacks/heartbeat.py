"""Write the progress of training to the run's status.json, and its data and device to the manifest."""

import json
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from leyden.contracts import HasFingerprint, HasSchema, monitor_of
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.run.directory import HEARTBEAT_EVERY, SCHEMA_FILE, Run


class Heartbeat(Callback):
    """Writes step, epoch and time to status.json every few seconds of training or validation."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._last_beat = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record data, device and processes; refuse to resume with other data or another feature network."""
        data = trainer.datamodule.fingerprint() if isinstance(trainer.datamodule, HasFingerprint) else None
        old_data = self.run.manifest.get("data")
        if old_data and data != old_data:
            splits = [name for name in old_data if old_data[name] != (data or {}).get(name)]
            raise self._mismatch(f"the {' and '.join(splits)} data")
        feature = getattr(getattr(pl_module, "feature", None), "record", None)
        old_feature = self.run.manifest.get("feature")
        if old_feature and (feature or {}).get("sha256") != old_feature["sha256"]:
            raise self._mismatch(f"the feature network {old_feature['name'] or 'Inception'}")
        if trainer.is_global_zero:
            if isinstance(trainer.datamodule, HasSchema) and trainer.datamodule.schema:
                schema = json.dumps(trainer.datamodule.schema.state_dict(), indent=1, ensure_ascii=False)
                write_atomically(self.run.path / SCHEMA_FILE, schema + "\n")
            device = trainer.strategy.root_device
            device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
            self.run.update_manifest(
                data=data,
                feature=feature,
                monitor=(monitor_of(pl_module) or (None,))[0],
                device=device_name,
                world_size=trainer.world_size,
                threads=torch.get_num_threads(),
            )

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Write the progress if the interval is over."""
        if time.monotonic() - self._last_beat > HEARTBEAT_EVERY:
            self._beat(trainer)

    on_validation_batch_end = on_train_batch_end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last step and epoch."""
        self._beat(trainer)

    def _mismatch(self, subject: str) -> UserError:
        name = self.run.name
        return UserError(f"{subject} is not what {name} began with: restore it, or use leyden rerun {name}")

    def _beat(self, trainer: Trainer) -> None:
        self._last_beat = time.monotonic()
        if trainer.is_global_zero:
            self.run.set_status("running", step=trainer.global_step, epoch=trainer.current_epoch)
