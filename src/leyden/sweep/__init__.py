"""Sweeps: a search space, a study that chooses points in it, and the jobs that train these points."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.sweep.pruning import Pruning

__getattr__ = lazy_imports(__name__)
