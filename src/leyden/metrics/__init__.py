"""Metrics that torchmetrics lacks."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.metrics.forecast import ForecastErrors

__getattr__ = lazy_imports(__name__)
