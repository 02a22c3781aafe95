"""When checkpoints are taken, and which are kept."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks
from pydantic import PositiveFloat, PositiveInt

from leyden import __version__
from leyden.callbacks.logged import just_logged
from leyden.checkpoints.io import AtomicCheckpointIO, is_plain, link, remove
from leyden.distributed import ranks
from leyden.run.directory import Run
from leyden.signals import Stop

# what a checkpoint knows of its run, should the manifest be lost; not of the machine, for it may be given to others
KNOWN = (
    "id",
    "created",
    "command",
    "overrides",
    "choices",
    "raw",
    "job",
    "leyden",
    "git",
    "packages",
    "python",
    "data",
    "monitor",
)


class Checkpoint(callbacks.Checkpoint):
    """Saves `checkpoints/step-N.ckpt` after every epoch, and before a stop; `last.ckpt` and `best.ckpt` link to them.

    All are taken between two steps, when validation, schedules and logging of the step before are over, so a
    resumed run continues as if it had never stopped. The last `keep` and the best one stay. `monitor` and
    `mode` say what best means; by default the model does. Of equally good checkpoints the latest is the best, and one
    whose value is not a number never is. `every_n_steps` and `every_minutes` save within epochs too. In the
    `background`, a thread writes a copy in the host's memory while the training goes on; the next one, a stop and the
    end of training wait for it.
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
        background: bool = False,
    ) -> None:
        self.folder = run_dir / "checkpoints"
        self._metrics = run_dir / "metrics.jsonl"
        self.monitor = monitor
        self.mode = mode
        self.keep = keep
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.background = background
        self.best: dict[str, Any] = {}  # monitored metric, its value and mode, step, and the metrics of that step
        self.last: dict[str, Any] = {}  # step and metrics of the last checkpoint
        self.metrics: dict[str, float] = {}  # the latest value of each name when the last checkpoint was taken
        self._config = config
        self._stop = stop
        self._validated: dict[str, float] = {}  # what validation measured of the weights as they are
        self._names: set[str] = set()  # all that validation has logged so far
        self._due = False
        self._saved_at = time.monotonic()
        self._last_saved: int | None = None  # step
        self._agreement = Agreement()

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
        self._last_saved = trainer.global_step or None  # resumed from a checkpoint of this step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the epoch before ended with."""
        if trainer.global_step:
            self._save(trainer)
        if self._agree(at_once=True):
            self._io(trainer).wait()
            self._stop.check()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save, if the step before, or a signal, asked for it and no gradients are half accumulated."""
        self._io(trainer).poll()
        if batch_idx % trainer.accumulate_grad_batches:
            return
        stops = self._agree()
        if self._due or stops:
            self._save(trainer)
        if stops:
            self._io(trainer).wait()
            self._stop.check()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask for a checkpoint when one is due."""
        if self.every_n_steps and (step := trainer.global_step) and step % self.every_n_steps == 0:
            self._due = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what was measured, and ask for a checkpoint."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated = {name: float(value) for name, value in just_logged(trainer).items()}
            self._names |= self._validated.keys()
            self._due = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last epoch here: after it, weight averaging replaces the weights that training ended with."""
        epochs, steps = trainer.max_epochs, trainer.max_steps
        if trainer.should_stop or trainer.current_epoch + 1 == epochs or trainer.global_step == steps:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal stops at once: all is saved."""
        self._io(trainer).wait()
        self._stop.deferred = False
        if self._agree(at_once=True):
            self._stop.check()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config that rebuilds the model; drop hyper-parameters that are not plain data."""
        checkpoint["leyden"] = {"version": __version__, "config": self._config}
        if trainer.is_global_zero:  # who writes it, and the files that it tells of
            size = self._metrics.stat().st_size if self._metrics.exists() else 0
            manifest = {key: value for key, value in Run(self.folder.parent).manifest.items() if key in KNOWN}
            checkpoint["leyden"] |= {"manifest": manifest, "metrics_size": size}
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            if key in checkpoint and not is_plain(checkpoint[key]):
                del checkpoint[key]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know of the past."""
        return {"best": self.best, "last": self.last, "metrics": self.metrics, "names": sorted(self._names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.best, self.metrics = state_dict["best"], state_dict["metrics"]
        self.last, self._names = state_dict.get("last", {}), set(state_dict.get("names", ()))
        if self.best and not (self.folder / self._file(self.best["step"])).exists():
            self.best = {}  # a later, now damaged checkpoint had taken its place

    def _agree(self, *, at_once: bool = False) -> bool:
        """Ask whether any rank got a signal, or finds that it is time for a checkpoint; every rank hears the same."""
        late = bool(self.every_minutes) and time.monotonic() - self._saved_at > 60 * self.every_minutes
        signum, late = self._agreement.reach(self._stop.signum or 0, late, at_once=at_once)
        self._due = self._due or late
        if signum:
            self._stop.signum = signum
        return signum > 0

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        path = self.folder / self._file(step)
        self._note(trainer, step)
        self._due, self._saved_at = False, time.monotonic()
        with trainer.fit_loop.epoch_loop.clock.paused():
            self._io(trainer).wait()
            settle = partial(self._settle, path, dict(self.best))
            if step != self._last_saved:
                trainer.save_checkpoint(path, storage_options={"background": self.background, "then": settle})
            elif trainer.is_global_zero:
                settle()
        self._last_saved = step

    def _note(self, trainer: Trainer, step: int) -> None:
        """Keep what is known of the weights as they are, and whether they are the best."""
        self.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        # values of earlier validations are of other weights
        own = {name: value for name, value in self.metrics.items() if name not in self._names} | self._validated
        before = self.last["metrics"] if self.last.get("step") == step else {}  # a resumed run has validated already
        self.last = {"step": step, "metrics": before | own}
        value = own.get(self.monitor, math.nan) if self._validated and self.monitor else math.nan
        if self._is_better(value):
            self.best = {"metric": self.monitor, "value": value, "mode": self.mode, **self.last}
        self._validated = {}

    def _settle(self, path: Path, best: dict[str, Any]) -> None:
        """Link to a checkpoint that is whole, and let go of old ones."""
        link(self.folder / "last.ckpt", path)
        if best:
            link(self.folder / "best.ckpt", self.folder / self._file(best["step"]))
        for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
            if not best or old.name != self._file(best["step"]):
                remove(old)

    def _file(self, step: int) -> str:
        return f"step-{step:09d}.ckpt"

    def _io(self, trainer: Trainer) -> AtomicCheckpointIO:
        return trainer.strategy.checkpoint_io

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if not self.best:
            return True
        return value >= self.best["value"] if self.mode == "max" else value <= self.best["value"]


class Agreement:
    """What the ranks decide together between two steps, about ten times a second.

    A message between processes costs more than a small step, so the ranks also agree on how many steps to make until
    the next one.
    """

    EVERY = 0.1  # seconds

    def __init__(self) -> None:
        self._calls = 0
        self._next = 1
        self._asked_at: float | None = None

    def reach(self, signum: int, late: bool, *, at_once: bool = False) -> tuple[int, bool]:
        """Return the largest of all ranks' values, or (0, False) when it is not time to ask."""
        if ranks.size() == 1:
            return signum, late
        self._calls += 1
        if self._calls < self._next and not at_once:
            return 0, False
        now = time.monotonic()
        seconds = (now - self._asked_at) / self._calls if self._asked_at else self.EVERY  # of one step
        signum, was_late, steps = ranks.all_reduce_max([signum, late, -max(1, round(self.EVERY / max(seconds, 1e-6)))])
        self._calls, self._next, self._asked_at = 0, -steps, now
        return signum, bool(was_late)
