"""A text for tests, and a comparison of two batches of text."""

import pytest
import torch

from leyden.batch import TextBatch

PROSE = "Der alte Mann saß am Ufer, und die Wellen kamen — wie immer — näher.\nEr las: 日本語!\n" * 12


def equal(a: TextBatch, b: TextBatch) -> bool:
    return torch.equal(a.token, b.token) and torch.equal(a.target, b.target) and a[2:] == b[2:]


def require_tokenizers() -> None:
    pytest.importorskip("tokenizers")
