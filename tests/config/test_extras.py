"""A config that needs an optional package is refused at once where the package is not installed."""

from pathlib import Path

import pytest

from leyden.config import signatures
from leyden.errors import UserError
from leyden.evaluation.answer_file import check_out
from support.refused import refused


@pytest.mark.parametrize(
    ("package", "extra", "overrides"),
    [
        ("timm", "timm", ["model=timm", "model.net.model_name=resnet18"]),
        ("tensorboard", "tensorboard", ["logger=tensorboard"]),
        ("polars", "series", ["data=etth1", "model=nlinear"]),
        ("sktime", "series", ["data=japanese_vowels", "model=lstm_classifier"]),
        ("statsmodels", "series", ["data=sunspots", "model=nlinear"]),
        ("tokenizers", "text", ["data=multi30k", "model=seq2seq"]),
        ("tokenizers", "text", ["data=shakespeare", "data.tokenizer=bpe", "model=lstm_lm"]),
    ],
)
def test_a_missing_extra_is_told_before_anything_starts(
    workdir, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, package: str, extra: str, overrides
):
    exists = signatures.module_exists
    monkeypatch.setattr(signatures, "module_exists", lambda name: name != package and exists(name))
    line = refused(capfd, "check", *overrides)
    assert f"needs the package {package}, which is not installed: pip install 'leyden[{extra}]' (" in line


def test_a_table_that_cannot_be_written_is_refused(workdir, monkeypatch: pytest.MonkeyPatch):
    exists = signatures.module_exists
    monkeypatch.setattr(signatures, "module_exists", lambda name: name != "polars" and exists(name))
    with pytest.raises(
        UserError, match=r"--out a.parquet needs the package polars, .*: pip install 'leyden\[series\]'"
    ):
        check_out(Path("a.parquet"))
    check_out(Path("a.csv"))
