"""Training on every rank: build objects from the config, run the training loop, and cooperate with the other ranks."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.training.fsdp import FSDP
    from leyden.training.strategies import UnwrappedDDP

__getattr__ = lazy_imports(__name__)
