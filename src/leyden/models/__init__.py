"""Models: a net with its loss, metrics and optimizer."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.models.classifier import Classifier
    from leyden.models.forecaster import Forecaster
    from leyden.models.gan.gan import GAN
    from leyden.models.image_classifier import ImageClassifier
    from leyden.models.manual import ManualModel
    from leyden.models.model import EvaluatedModel, Model
    from leyden.models.multi_label import MultiLabelClassifier
    from leyden.models.regressor import Regressor
    from leyden.models.text.language_model import LanguageModel
    from leyden.models.text.translator import Translator

__getattr__ = lazy_imports(__name__)
