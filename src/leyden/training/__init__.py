"""What every rank does with a run: config to objects, the training loop, and how ranks work together."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.training.fsdp import FSDP
    from leyden.training.strategies import UnwrappedDDP

__getattr__ = lazy_imports(__name__)
