"""Data sets that may not be part of the repository, in the folder $LEYDEN_TEST_DATA, by default $LEYDEN_DATA."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("LEYDEN_TEST_DATA") or os.environ.get("LEYDEN_DATA") or "no-test-data").absolute()


def _first(*names: str) -> Path:
    """Return the first of the paths below ROOT that exists: put there by hand, or downloaded by leyden."""
    return next((ROOT / name for name in names if (ROOT / name).exists()), ROOT / names[0])


SHAKESPEARE = _first("tinyshakespeare.txt", "shakespeare/input.txt")
ETTH1 = _first("ETTh1.csv", "ett/ETTh1.csv")
MULTI30K = _first("multi30k")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist


def missing(path: Path) -> str:
    """Return the reason why a test is skipped."""
    advice = f": set LEYDEN_TEST_DATA to a folder with {path.name}" if path.is_relative_to(ROOT) else ""
    return f"{path} is not here{advice}"


def needs(path: Path) -> pytest.MarkDecorator:
    """Return a mark that skips a test if its data set is missing."""
    return pytest.mark.skipif(not path.exists(), reason=missing(path))
