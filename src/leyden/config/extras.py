"""Packages that leyden installs only on request, and that a config needs for some of its classes and values."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from leyden.config import signatures


class Package(NamedTuple):
    """An optional package: the name that Python imports, what pip installs, and the choices that need it."""

    name: str
    requirement: str
    choices: str = ""


COMET = Package("comet_ml", "comet-ml")
MLFLOW = Package("mlflow", "mlflow")
POLARS = Package("polars", "'leyden[series]'", "data=series, data=etth1 and Parquet files")
SKTIME = Package("sktime", "'leyden[series]'", "data=japanese_vowels")
STATSMODELS = Package("statsmodels", "'leyden[series]'", "data=sunspots")
TENSORBOARD = Package("tensorboard", "'leyden[tensorboard]'", "logger=tensorboard")
TIMM = Package("timm", "'leyden[timm]'", "model=timm")
TOKENIZERS = Package("tokenizers", "'leyden[text]'", "tokenizers of words and byte pairs, and translation")

EXTRAS = (TENSORBOARD, TIMM, TOKENIZERS, POLARS, SKTIME, STATSMODELS)
REQUIRED = {  # by class, or by the module that defines it
    "leyden.data.ETTh1": POLARS,
    "leyden.data.JapaneseVowels": SKTIME,
    "leyden.data.Multi30k": TOKENIZERS,
    "leyden.data.Pairs": TOKENIZERS,
    "leyden.data.SeriesFile": POLARS,
    "leyden.data.Sunspots": STATSMODELS,
    "leyden.loggers.TensorBoard": TENSORBOARD,
    "leyden.nets.Timm": TIMM,
    "lightning.pytorch.loggers.comet": COMET,
    "lightning.pytorch.loggers.mlflow": MLFLOW,
    "lightning.pytorch.loggers.tensorboard": TENSORBOARD,
}
LEARNED = ("word", "bpe")  # values of `tokenizer` for which the vocabulary is learned by the package tokenizers


def find_missing(path: str, node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the key of a node with a _target_ that needs a package which is not installed, and how to install it."""
    target = node["_target_"]
    definition = signatures.locate(target)
    package = REQUIRED.get(target) or REQUIRED.get(definition.module.name if definition else "")
    if package and (reason := missing(package)):
        yield f"{path}._target_", f"{path}._target_={target}: this class {reason}"
    elif path == "data" and node.get("tokenizer") in LEARNED and (reason := missing(TOKENIZERS)):
        yield "data.tokenizer", f"data.tokenizer={node['tokenizer']} {reason}"


def missing(package: Package) -> str | None:
    """Return the message that a package is not installed and how to install it, or None if it is installed."""
    if signatures.module_exists(package.name):
        return None
    return f"needs the package {package.name}, which is not installed: pip install {package.requirement}"
