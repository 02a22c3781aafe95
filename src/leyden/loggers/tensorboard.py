"""TensorBoard event files, in addition to the local record."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure

from leyden.errors import UserError


class TensorBoard(TensorBoardLogger):
    """Writes values and figures to `<run_dir>/tensorboard`."""

    def __init__(self, *, run_dir: Path) -> None:
        if find_spec("tensorboard") is None:
            raise UserError("logger=tensorboard needs TensorBoard: pip install 'leyden[tensorboard]'")
        super().__init__(run_dir, name="", version="tensorboard", default_hp_metric=False)

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Hide the values that earlier writers logged after `step`; call it before anything is logged."""
        assert self._experiment is None, "the event file was opened before the step to resume from was known"
        self._kwargs["purge_step"] = step + 1

    @rank_zero_only
    def log_figure(self, name: str, figure: Figure | np.ndarray, step: int) -> None:
        """Add `figure`, or uint8 pixels, as a picture."""
        if isinstance(figure, np.ndarray):
            self.log_image(name, figure, step)
        else:
            self.experiment.add_figure(name, figure, step, close=False)

    @rank_zero_only
    def log_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Add uint8 pixels (H, W) or (H, W, 3) as a picture."""
        self.experiment.add_image(name, pixels, step, dataformats="HWC"[: pixels.ndim])
