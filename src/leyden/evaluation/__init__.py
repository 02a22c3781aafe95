"""Use a trained model from Python: load its checkpoint, measure it, predict, generate and export."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.evaluation.features import ClassifierFeatures, InceptionFeatures

__getattr__ = lazy_imports(__name__)
