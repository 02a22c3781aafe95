"""Where a run's values, figures and checkpoints go: its own directory always, and the services asked for."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.loggers.tensorboard import TensorBoard
    from leyden.loggers.wandb import Wandb

__getattr__ = lazy_imports(__name__)
