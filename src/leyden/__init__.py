"""leyden: a research run is one directory, and anything can start again from it."""

from typing import TYPE_CHECKING

from leyden.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from leyden.api.compare import Comparison, compare
    from leyden.api.run import Run, runs
    from leyden.api.train import compose, train
    from leyden.errors import RunError, UserError

__version__ = "0.1.0"
__all__ = ["Comparison", "Run", "RunError", "UserError", "compare", "compose", "runs", "train"]
__getattr__ = lazy_imports(__name__)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
