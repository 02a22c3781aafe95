"""Digits: the small data set that scikit-learn carries."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from leyden.data.images.images import Images
from leyden.data.split import Split, set_aside
from leyden.errors import UserError


class Digits(Images):
    """Handwritten digits of 8x8 pixels with 17 grey levels, as scikit-learn carries them.

    1,797 examples (Alpaydin & Kaynak 1998), of which a fixed fifth is for testing.
    """

    names = tuple("0123456789")

    def read(self) -> tuple[Split, Split]:
        """Read the table of scikit-learn, without importing it."""
        spec = find_spec("sklearn")
        if spec is None or spec.origin is None:
            raise UserError("data=digits reads the digits that scikit-learn carries: install scikit-learn")
        path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",")  # (N, 65): pixels 0..16, then the label
        images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        split = Split(images, table[:, -1].astype(np.int64))
        test, train = set_aside("the test part", 0.2, split.labels, seed=0, stratify=True)
        return split.take(train), split.take(test)
