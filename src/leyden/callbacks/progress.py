"""The progress bar, and one line for each epoch."""

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from leyden.callbacks.metering import Metering
from leyden.console import console, say
from leyden.contracts import monitor_of
from leyden.metric_names import named_metrics

REFRESH_EVERY = 0.2  # seconds


class Progress(ProgressBar):
    """A rich bar over the batches on a terminal, plain lines elsewhere; redrawn at a fixed rate, not at every step."""

    def __init__(self, metering: Metering) -> None:
        super().__init__()
        self._metering = metering
        self._bar: Bar | None = None
        self._last_drawn = 0.0
        self._epoch_start = 0.0
        self._has_validated = False  # whether a validation ran in this epoch

    def disable(self) -> None:
        """Stay enabled on all ranks, because each prints to its own log."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar, and start the clock of a resumed epoch."""
        self._epoch_start = time.monotonic()
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[values]}", markup=False),
            )
            self._bar = Bar(*columns, console=console, auto_refresh=False, transient=True)
            self._bar.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the epoch."""
        self._epoch_start = time.monotonic()
        self._has_validated = False
        if self._bar:
            self._draw(self._title(trainer), 0, trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the bar unless it was drawn a moment ago."""
        if self._bar and time.monotonic() - self._last_drawn > REFRESH_EVERY:
            self._draw(self._title(trainer), batch_idx + 1, trainer.num_training_batches)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, index: int = 0
    ) -> None:
        """Draw the bar unless it was drawn a moment ago."""
        if self._bar and time.monotonic() - self._last_drawn > REFRESH_EVERY:
            self._draw("validation", batch_idx + 1, trainer.num_val_batches[index])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record that this epoch has new validation metrics."""
        self._has_validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print one line about the epoch."""
        values = named_metrics(trainer.callback_metrics) | self._metering.latest_means
        if not self._has_validated:
            values = {name: value for name, value in values.items() if not name.startswith("val/")}
        seconds = time.monotonic() - self._epoch_start
        extra_names = {*trainer.progress_bar_metrics, (monitor_of(pl_module) or ("",))[0]}
        parts = (self._title(trainer), _format_line(values, extra_names), self._metering.throughput.epoch_text())
        say("  ".join(filter(None, (*parts, f"{seconds:.1f} s"))))

    def on_train_end(self, *_: Any) -> None:
        """Close the bar, which would also hide an error message."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    on_exception = on_train_end

    def _title(self, trainer: Trainer) -> str:
        epochs = trainer.max_epochs
        return f"epoch {trainer.current_epoch + 1}" + (f"/{epochs}" if epochs and epochs > 0 else "")

    def _draw(self, title: str, completed: int, total: float) -> None:
        assert self._bar
        self._last_drawn = time.monotonic()
        steps = None if total == float("inf") else total
        means = self._metering.latest_means or self.trainer.progress_bar_metrics
        values = _format_values(means, list(means)[:3])
        values = "  ".join(filter(None, (values, self._metering.throughput.text)))
        if not self._bar.tasks:
            self._bar.add_task("", values="")
        self._bar.update(self._bar.task_ids[0], description=title, completed=completed, total=steps, values=values)
        self._bar.refresh()


def _format_line(values: dict[str, float], extra_names: set[str]) -> str:
    """Format the main values and `extra_names` by stage: `train loss 0.1 accuracy 0.9  val loss …`."""
    main_metrics = {"loss", "loss_d", "loss_g", "accuracy", *(name.partition("/")[2] for name in extra_names)}
    names = [name for name in values if name.partition("/")[2] in main_metrics and f"{name}_epoch" not in extra_names]
    if not names:
        return _format_values(values, list(values)[:4])
    stages = sorted({name.partition("/")[0] for name in names})
    return "  ".join(
        f"{stage} " + " ".join(f"{n.partition('/')[2]} {values[n]:.4g}" for n in names if n.partition("/")[0] == stage)
        for stage in stages
    )


def _format_values(values: dict[str, float], names: list[str]) -> str:
    return "  ".join(f"{name} {values[name]:.4g}" for name in names)
