"""The local record: the values, figures and texts of a run in its directory, independent of other loggers."""

import time
from argparse import Namespace
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure

from leyden.console import say
from leyden.files import write_atomically
from leyden.loggers import films, metrics_file
from leyden.loggers.experiment import LocalExperiment
from leyden.metric_names import metric_name, stage_of


class Record(Logger):
    """Writes values to `<run_dir>/metrics.jsonl`, figures to `figures/`, texts and films to `samples/`, on rank 0.

    Values get leyden's names, `val/loss` for `val_loss`. If `trainer` is set, they belong to its step, which is the one
    that a resumed run continues from; a module may log a `step` of its own for other loggers.
    """

    name = version = ""  # they are empty, because `save_dir` is already the run's folder

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.run_dir = Path(run_dir)
        self.trainer: Any = None
        self._experiment = LocalExperiment(self)
        self._spellings: dict[str, set[str]] = {}  # by name: how the module spelled it

    @property
    def experiment(self) -> LocalExperiment:
        """The object for modules that use another logger's client; only rank 0 stores what they log."""
        return self._experiment

    @property
    def step(self) -> int:
        """The trainer's step."""
        return self.trainer.fit_loop.epoch_loop._batches_that_stepped if self.trainer else 0

    @property
    def path(self) -> Path:
        """The file that values are written to; `metrics_file.read_metrics` reads it."""
        return self.run_dir / "metrics.jsonl"

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self.run_dir)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add one line: the step, the epoch if there is one, the time in Unix seconds, and every value."""
        values = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
        epoch = {"epoch": values.pop("epoch")} if "epoch" in values else {}
        step = self.step if self.trainer else int(step or 0)
        metrics_file.append(self.path, {"step": step, **epoch, "time": time.time(), **self._with_names(values)})

    def _with_names(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return values under leyden's names; report once if the module logs two spellings of one name."""
        names = {name: metric_name(name, stage_of(self.trainer)) for name in values}
        for spelling, name in names.items():
            spellings = self._spellings.setdefault(name, set())
            if spelling not in spellings:
                spellings.add(spelling)
                if len(spellings) == 2:
                    say(f"{' and '.join(sorted(spellings))} are both read as {name}: rename one of them in the module")
        return {names[spelling]: value for spelling, value in values.items()}

    @rank_zero_only
    def log_figure(self, name: str, figure: Figure | np.ndarray, step: int) -> None:
        """Draw `figure`, or uint8 pixels, to `figures/<name>.png`, replacing an earlier one."""
        path = self.run_dir / "figures" / f"{name}.png"
        description = f"{name} at step {step}"
        if isinstance(figure, np.ndarray):
            films.write_png(path, figure, description)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        file = BytesIO()
        figure.savefig(file, format="png", metadata={"Description": description})
        write_atomically(path, file.getvalue())

    @rank_zero_only
    def log_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Add a frame, uint8 pixels (H, W) or (H, W, 3), to the film `samples/<name>.gif`."""
        films.add_frame(self.run_dir, name, pixels, step)

    @rank_zero_only
    def log_animation(self, name: str, step: int) -> None:
        """End the film `samples/<name>.gif` with its last frame."""
        films.render(films.gif_path(self.run_dir, name))

    @rank_zero_only
    def log_text(self, name: str, text: str, step: int) -> None:
        """Write `text` to `samples/<name>.txt`, replacing an earlier one."""
        path = self.run_dir / "samples" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Drop the values and frames after `step`, because a run that resumes there logs them again."""
        metrics_file.truncate(self.path, step)
        films.truncate(self.run_dir, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing, since the run's `config.yaml` holds them."""
