"""When checkpoints are taken, and which are kept."""

import time
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks
from pydantic import PositiveFloat, PositiveInt

from leyden import __version__
from leyden.checkpoints import is_plain, link
from leyden.signals import Stop


class Checkpoint(callbacks.Checkpoint):
    """Saves `checkpoints/step-N.ckpt` after every epoch, and before a stop; `last.ckpt` and `best.ckpt` link to them.

    All are taken between two steps, when validation, schedules and logging of the step before are over, so a
    resumed run continues as if it had never stopped. The last `keep` and the best one stay. `monitor` and
    `mode` say what best means; by default the model does. `every_n_steps` and `every_minutes` save within
    epochs too.
    """

    def __init__(
        self,
        run_dir: Path,
        config: dict,
        stop: Stop,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        keep: PositiveInt = 2,
        every_n_steps: PositiveInt | None = None,
        every_minutes: PositiveFloat | None = 10.0,
    ) -> None:
        self.folder = run_dir / "checkpoints"
        self.monitor = monitor
        self.mode = mode
        self.keep = keep
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.best: dict[str, Any] = {}  # file, value and step
        self.metrics: dict[str, float] = {}  # as they were when the last checkpoint was taken
        self._config = config
        self._stop = stop
        self._score: float | None = None  # of the weights as they are, if they were validated
        self._due = False
        self._saved_at = time.monotonic()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the model's own idea of the best, unless the config has one."""
        self.monitor, self.mode = self.monitor_of(pl_module) or (None, self.mode)

    def monitor_of(self, model: LightningModule) -> tuple[str, Literal["min", "max"]] | None:
        """The metric and direction that say which checkpoint is the best."""
        if self.monitor is not None:
            return self.monitor, self.mode
        return getattr(model, "monitor", None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the next step boundary."""
        self._stop.deferred = True
        self._saved_at = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the epoch before ended with."""
        if trainer.global_step:
            self._save(trainer)
        self._stop.check()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save, if the step before, or a signal, asked for it and no gradients are half accumulated."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        if self._due or self._stop.signum is not None:
            self._save(trainer)
            self._stop.check()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask for a checkpoint when one is due."""
        if self.every_minutes and time.monotonic() - self._saved_at > 60 * self.every_minutes:
            self._due = True
        if self.every_n_steps and (step := trainer.global_step) and step % self.every_n_steps == 0:
            self._due = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the score, and ask for a checkpoint."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            value = trainer.callback_metrics.get(self.monitor) if self.monitor else None
            self._score = None if value is None else float(value)
            self._due = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last epoch here: after it, weight averaging replaces the weights that training ended with."""
        epochs, steps = trainer.max_epochs, trainer.max_steps
        if trainer.should_stop or trainer.current_epoch + 1 == epochs or trainer.global_step == steps:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal stops at once: all is saved."""
        self._stop.deferred = False
        self._stop.check()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config that rebuilds the model; drop hyper-parameters that are not plain data."""
        checkpoint["leyden"] = {"version": __version__, "config": self._config}
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            if key in checkpoint and not is_plain(checkpoint[key]):
                del checkpoint[key]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know of the past."""
        return {"best": self.best, "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.best, self.metrics = state_dict["best"], state_dict["metrics"]
        if self.best and not (self.folder / self.best["file"]).exists():
            self.best = {}  # a later, now damaged checkpoint had taken its place

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        path = self.folder / f"step-{step:09d}.ckpt"
        if self._is_better():
            self.best = {"file": path.name, "value": self._score, "metric": self.monitor, "step": step}
        self._score, self._due, self._saved_at = None, False, time.monotonic()
        self.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not path.exists():  # else the run was resumed from this very step
            trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            link(self.folder / "last.ckpt", path)
            if self.best:
                link(self.folder / "best.ckpt", self.folder / self.best["file"])
            for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
                if old.name != self.best.get("file"):
                    old.unlink()

    def _is_better(self) -> bool:
        if self._score is None or self._score != self._score:
            return False
        if not self.best:
            return True
        return self._score > self.best["value"] if self.mode == "max" else self._score < self.best["value"]
