"""Labelled sequences for tests."""

import numpy as np

from leyden.data.sequences.sequences import Examples, Sequences


class InMemorySequences(Sequences):
    """Sequences in memory, passed in by a test."""

    def __init__(self, train: Examples, test: Examples, **settings) -> None:
        features = train.series[0].shape[1]
        super().__init__(num_classes=3, num_features=features, **settings)
        self.parts = train, test

    @property
    def classes(self) -> list[str]:
        return ["a", "b", "c"]

    def read(self) -> tuple[Examples, Examples]:
        return self.parts


def examples(num: int, features: int = 2, seed: int = 0) -> Examples:
    """Return sequences of 1 to 9 steps, each noise around twice its class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=num)
    series = [(2 * label + rng.standard_normal((rng.integers(1, 10), features))).astype(np.float32) for label in labels]
    return Examples(series, labels)
