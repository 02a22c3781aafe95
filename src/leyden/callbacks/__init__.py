"""Callbacks: checkpoints, logging, the cost of training, progress, samples and predictions."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.callbacks.checkpoint import Checkpoint
    from leyden.callbacks.samples import Samples

__getattr__ = lazy_imports(__name__)
