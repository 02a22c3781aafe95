"""The callback that decides when checkpoints are taken and which ones are kept."""

import math
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks
from pydantic import PositiveFloat, PositiveInt

from leyden import __version__
from leyden.checkpoints.io import AtomicCheckpointIO, is_plain, link, remove, remove_later
from leyden.config.directions import direction, direction_of_name
from leyden.config.run_config import RunConfig
from leyden.console import say
from leyden.contracts import monitor_of
from leyden.distributed import ranks
from leyden.distributed.signals import Stop
from leyden.errors import UserError, nearest
from leyden.files.formats import CHECKPOINT
from leyden.metric_names import metric_name, named_metrics
from leyden.run.directory import Run

# The keys of the manifest that a checkpoint also holds, so that a lost manifest can be restored. Facts about the
# machine are left out, because checkpoints are passed on to others.
MANIFEST_KEYS = {"id", "created", "command", "overrides", "choices", "raw", "job", "data", "monitor"}
MANIFEST_KEYS |= {"leyden", "git", "packages", "python"}


class Checkpoint(callbacks.Checkpoint):
    """Saves `checkpoints/step-N.ckpt` after every epoch, and before a stop; `last.ckpt` and `best.ckpt` link to them.

    A checkpoint is taken between two steps, after the validation, the schedules and the logging of the first step, so a
    resumed run continues as if it had never stopped. The last `keep` and the best one are kept. `monitor` and `mode`
    define the best one; by default the model does. Without `mode`, the model or the metric decides whether the highest
    value is the best; by default the lowest one is. Of equally good checkpoints, the latest counts as the best; a
    checkpoint whose value is NaN is never the best. `every_n_steps` and `every_minutes` save within epochs too. With
    `background`, a thread writes a copy in the host's memory while the training continues; the next checkpoint, a stop
    and the end of training wait for it.
    """

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        stop: Stop,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        keep: PositiveInt = 2,
        every_n_steps: PositiveInt | None = None,
        every_minutes: PositiveFloat | None = 10.0,
        background: bool = False,
    ) -> None:
        self.folder = run_dir / "checkpoints"
        self._metrics_path = run_dir / "metrics.jsonl"
        # a config that an older leyden froze may have the module's spelling
        self.monitor, self.mode = monitor and metric_name(monitor, "val"), mode
        self.keep, self.background = keep, background
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self.best: dict[str, Any] = {}  # the monitored metric, its value, mode and step, and all metrics of that step
        self.last: dict[str, Any] = {}  # step and metrics of the last checkpoint
        self.metrics: dict[str, float] = {}  # the latest value of each name when the last checkpoint was taken
        self._config = config
        self._stop = stop
        self._validation_metrics: dict[str, float] = {}  # metrics of the current weights
        self._validation_names: set[str] = set()  # names of all metrics that validation has logged so far
        self._monitor_is_checked = False  # whether the monitored metric was looked for
        self._is_due = False
        self._saved_at = time.monotonic()
        self._last_saved_step: int | None = None
        self._agreement = Agreement()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the monitored metric and its direction from the model, unless the config sets them."""
        self.monitor, self.mode = self.monitor_of(pl_module) or (None, self.mode)

    def monitor_of(self, model: LightningModule) -> tuple[str, Literal["min", "max"]] | None:
        """Return the metric and direction that choose the best checkpoint."""
        if self.monitor is not None:
            return self.monitor, self.mode or direction(self._config, self.monitor) or direction_of_name(
                self.monitor
            ) or "min"
        return monitor_of(model)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Defer signals to the end of a step from here on."""
        self._stop.deferred = True
        self._saved_at = time.monotonic()
        self._last_saved_step = trainer.global_step or None  # the run resumes from a checkpoint of this step
        for callback in trainer.checkpoint_callbacks if trainer.is_global_zero else ():
            # What Lightning's callback saved after this step is saved again, and would get another name. A project's
            # own subclass may write outside of the run, where the checkpoints of other runs can lie.
            if isinstance(callback, callbacks.ModelCheckpoint) and callback.dirpath:
                folder = Path(callback.dirpath).resolve()
                if folder.is_relative_to(self.folder.parent.resolve()):
                    remove_later(folder, trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state after the previous epoch."""
        if trainer.global_step:
            self._save(trainer)
        if self._agree(at_once=True):
            self._io(trainer).wait()
            self._stop.check()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save if the last step or a signal requested it, unless gradients are only partly accumulated."""
        self._io(trainer).poll()
        if batch_idx % trainer.accumulate_grad_batches:
            return
        must_stop = self._agree()
        if self._is_due or must_stop:
            self._save(trainer)
        if must_stop:
            self._io(trainer).wait()
            self._stop.check()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Request a checkpoint when one is due."""
        if self.every_n_steps and (step := trainer.global_step) and step % self.every_n_steps == 0:
            self._is_due = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the metrics, and request a checkpoint."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validation_metrics = named_metrics(trainer._logger_connector.evaluation_metrics)
            self._validation_names |= self._validation_metrics.keys()
            self._is_due = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the last epoch, since weight averaging replaces the trained weights before `on_train_end`."""
        self._check_monitor(trainer)
        epochs, steps = trainer.max_epochs, trainer.max_steps
        if trainer.should_stop or trainer.current_epoch + 1 == epochs or trainer.global_step == steps:
            self._save(trainer)

    def _check_monitor(self, trainer: Trainer) -> None:
        """Refuse a metric that the first epoch with a validation has not logged; say so if no metric is named."""
        if self._monitor_is_checked or not self._validation_names:
            return
        self._monitor_is_checked = True
        if self.monitor is None:
            losses = [name for name in sorted(self._validation_names) if "loss" in name]
            name = (losses or sorted(self._validation_names))[0]
            say(f"no best checkpoint is kept: name the metric that chooses it, such as checkpoint.monitor={name}")
            return
        names = {*self._validation_names, *named_metrics(trainer.callback_metrics)}
        if self.monitor not in names:
            raise UserError(f"checkpoint.monitor={self.monitor} was not logged{nearest(self.monitor, names)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let signals stop the process at once from here on, because everything is saved."""
        self._io(trainer).wait()
        self._stop.deferred = False
        if self._agree(at_once=True):
            self._stop.check()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config that rebuilds the model; drop hyper-parameters that are not plain data."""
        checkpoint["leyden"] = CHECKPOINT.stamp({"version": __version__, "config": self._config})
        if trainer.is_global_zero:  # this rank writes the checkpoint, the manifest and the metrics
            size = self._metrics_path.stat().st_size if self._metrics_path.exists() else 0
            manifest = {key: value for key, value in Run(self.folder.parent).manifest.items() if key in MANIFEST_KEYS}
            checkpoint["leyden"] |= {"manifest": manifest, "metrics_size": size}
        for key in ("hyper_parameters", "datamodule_hyper_parameters"):
            if key in checkpoint and not is_plain(checkpoint[key]):
                del checkpoint[key]

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics and names that a resumed run needs."""
        return {"best": self.best, "last": self.last, "metrics": self.metrics, "names": sorted(self._validation_names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best, self.metrics = state_dict["best"], state_dict["metrics"]
        self.last, self._validation_names = state_dict.get("last", {}), set(state_dict.get("names", ()))
        if self.best and not (self.folder / self._file_name(self.best["step"])).exists():
            self.best = {}  # its file was removed when a better checkpoint was saved, but that one is now damaged

    def _agree(self, *, at_once: bool = False) -> bool:
        """Return whether any rank got a signal; request a checkpoint if one is overdue on any rank."""
        is_overdue = bool(self.every_minutes) and time.monotonic() - self._saved_at > 60 * self.every_minutes
        signum, is_overdue = self._agreement.reach(self._stop.signum or 0, is_overdue, at_once=at_once)
        self._is_due = self._is_due or is_overdue
        if signum:
            self._stop.signum = signum
        return signum > 0

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        path = self.folder / self._file_name(step)
        self._update_metrics(trainer, step)
        self._is_due, self._saved_at = False, time.monotonic()
        with trainer.fit_loop.epoch_loop.clock.paused():
            self._io(trainer).wait()
            link_and_prune = partial(self._link_and_prune, path, dict(self.best))
            if step != self._last_saved_step:
                trainer.save_checkpoint(
                    path, storage_options={"background": self.background, "on_complete": link_and_prune}
                )
            elif trainer.is_global_zero:
                link_and_prune()
        self._last_saved_step = step

    def _update_metrics(self, trainer: Trainer, step: int) -> None:
        """Store the metrics of the current weights, and update the best ones if these are better."""
        self.metrics |= named_metrics(trainer.callback_metrics)
        # values of earlier validations belong to other weights
        other_metrics = {name: value for name, value in self.metrics.items() if name not in self._validation_names}
        current_metrics = other_metrics | self._validation_metrics
        # a resumed run has validated already
        previous_metrics = self.last["metrics"] if self.last.get("step") == step else {}
        self.last = {"step": step, "metrics": previous_metrics | current_metrics}
        value = current_metrics.get(self.monitor, math.nan) if self._validation_metrics and self.monitor else math.nan
        if self._is_better(value):
            self.best = {"metric": self.monitor, "value": value, "mode": self.mode, **self.last}
        self._validation_metrics = {}

    def _link_and_prune(self, path: Path, best: dict[str, Any]) -> None:
        """Link to a checkpoint that is complete, and remove old ones."""
        link(self.folder / "last.ckpt", path)
        if best:
            link(self.folder / "best.ckpt", self.folder / self._file_name(best["step"]))
        for old_path in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
            if not best or old_path.name != self._file_name(best["step"]):
                remove(old_path)

    def _file_name(self, step: int) -> str:
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
    """A decision that all ranks make together between two steps, about ten times a second.

    A message between processes costs more than a small step, so the ranks also agree on the number of steps until the
    next message.
    """

    INTERVAL = 0.1  # seconds between two messages

    def __init__(self) -> None:
        self._calls = 0
        self._next_call = 1
        self._message_time: float | None = None

    def reach(self, signum: int, is_overdue: bool, *, at_once: bool = False) -> tuple[int, bool]:
        """Return the maximum of each value over the ranks, or (0, False) if the next message is not yet due."""
        if ranks.size() == 1:
            return signum, is_overdue
        self._calls += 1
        if self._calls < self._next_call and not at_once:
            return 0, False
        now = time.monotonic()
        seconds_per_step = (now - self._message_time) / self._calls if self._message_time else self.INTERVAL
        steps = max(1, round(self.INTERVAL / max(seconds_per_step, 1e-6)))
        signum, any_overdue, steps = ranks.all_reduce_max([signum, is_overdue, -steps])
        self._calls, self._next_call, self._message_time = 0, -steps, now
        return signum, bool(any_overdue)
