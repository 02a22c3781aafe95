"""Digits: the small data set that comes with scikit-learn."""

import gzip

import numpy as np

from leyden.data.download import package_folder
from leyden.data.images.images import Images, Split
from leyden.data.split import set_aside


class Digits(Images):
    """Handwritten digits of 8x8 pixels with 17 grey levels, which come with scikit-learn (Alpaydin & Kaynak 1998).

    A fixed fifth of the 1,797 examples is for testing.
    """

    names = tuple("0123456789")

    def read(self) -> tuple[Split, Split]:
        """Read scikit-learn's table without importing scikit-learn."""
        advice = "data=digits reads the digits that come with scikit-learn: install scikit-learn"
        with gzip.open(package_folder("sklearn", advice) / "datasets/data/digits.csv.gz", "rt") as file:
            table = np.loadtxt(file, delimiter=",")  # (N, 65): pixels 0..16, then the label
        images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        split = Split(images, table[:, -1].astype(np.int64))
        test, train = set_aside("the test part", 0.2, split.labels, seed=0, stratify=True)
        return split.take(train), split.take(test)
