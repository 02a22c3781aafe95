"""The public names, on which configs and projects may rely; the files behind them may move."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from leyden.config import signatures
from leyden.config.instantiate import LEYDEN, refusal
from leyden.lazy_imports import public_names

ROOT = Path(__file__).parents[2]
NAMES = {
    "callbacks": "Checkpoint Samples",
    "data": """
        CIFAR10 CIFAR100 Data Digits ETTh1 Enwik8 FashionMNIST ImageFolder Images JapaneseVowels MNIST Multi30k PTB Pairs
        Passages PyDocs Sequences Series SeriesFile Shakespeare Split StdlibDocs Sunspots Text Text8 TextFiles TextTable
        Translation TsFiles WikiText103
        WikiText2
    """,
    "evaluation": "ClassifierFeatures InceptionFeatures",
    "loggers": "TensorBoard Wandb",
    "metrics": "ForecastErrors",
    "models": """
        Classifier EvaluatedModel Forecaster GAN ImageClassifier LanguageModel ManualModel Model MultiLabelClassifier
        Regressor Translator
    """,
    "nets": """
        ConvNet DCGANDiscriminator DCGANGenerator MLPDiscriminator MLPGenerator MinRNNLM NLinear R3GANDiscriminator
        R3GANGenerator RNN RecurrentForecaster RecurrentLM ResNet18 ResNet9 SNGANDiscriminator SNGANGenerator Seq2Seq
        SequenceClassifier SmallResNet TextClassifier Timm TransformerLM TransformerTextClassifier
    """,
    "optim": "Constant Cosine",
    "sweep": "Pruning",
    "training": "FSDP UnwrappedDDP",
}
PUBLIC = [f"leyden.{package}.{name}" for package, names in NAMES.items() for name in names.split()]


def test_these_names_are_public():
    assert sorted(PUBLIC) == sorted(f"{package}.{name}" for package in LEYDEN for name in public_names(package))


@pytest.mark.parametrize("target", PUBLIC)
def test_each_is_imported_and_found_in_its_source(target: str):
    package, _, name = target.rpartition(".")
    value = getattr(import_module(package), name)
    definition = signatures.locate(target)
    assert definition is not None
    assert (value.__module__, value.__name__) == (definition.module.name, name)
    assert refusal(target) is None
    assert refusal(f"{value.__module__}.{name}") is not None


def test_no_name_stands_for_two_things():
    names = [target.rpartition(".")[2] for target in PUBLIC]
    assert sorted(names) == sorted(set(names))


def test_configs_name_nothing_else():
    folders = ("conf", "experiments", "src/leyden/template")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.yaml")]
    targets = {target for file in files for target in re.findall(r"_target_: *(leyden\.[\w.]+)", file.read_text())}
    assert len(targets) > 40
    assert targets <= set(PUBLIC)


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'leyden\.nets' has no attribute 'ConvNt'"):
        import_module("leyden.nets").ConvNt  # noqa: B018


def test_the_packages_import_nothing_heavy():
    code = (
        f"import sys, {', '.join(LEYDEN)}; print({{'torch', 'lightning', 'numpy', 'torchmetrics'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
