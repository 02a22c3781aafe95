"""Loggers of values, figures and checkpoints: the run directory always, and the services that a config names."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.loggers.tensorboard import TensorBoard
    from leyden.loggers.wandb import Wandb

__getattr__ = lazy_imports(__name__)
