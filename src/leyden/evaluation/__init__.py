"""What a trained model is worth: its checkpoint loaded, measured, and asked for predictions."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.evaluation.features import ClassifierFeatures, InceptionFeatures

__getattr__ = lazy_imports(__name__)
