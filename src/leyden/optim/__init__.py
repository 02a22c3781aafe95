"""Learning-rate schedules that torch lacks."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.optim.schedules import Constant, Cosine

__getattr__ = lazy_imports(__name__)
