"""Stripes: pictures computed by a formula, so that the project needs no files."""

from typing import Any

import numpy as np
from pydantic import NonNegativeFloat

from leyden.data import Images, Split

NUM_TRAIN, NUM_TEST = 1000, 500


class Stripes(Images):
    """Waves in four directions with a random phase, a length of 4 to 8 pixels, and noise.

    `noise` is the standard deviation of the noise; the waves range from 0 to 1. The base class splits, shuffles and
    augments the data, and makes `leyden.batch.ImageBatch`es. Any other LightningDataModule works as well.
    """

    names = ("|", "\\", "-", "/")

    def __init__(self, noise: NonNegativeFloat = 0.4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.noise = noise

    def read(self) -> tuple[Split, Split]:
        """Make the training and test pictures, which are the same in every run."""
        rng = np.random.default_rng(0)
        return self._make(NUM_TRAIN, rng), self._make(NUM_TEST, rng)

    def _make(self, count: int, rng: np.random.Generator) -> Split:
        _, height, width = self.image_shape
        label = rng.integers(len(self.names), size=count)
        angle = label[:, None, None] * np.pi / 4
        length, phase = rng.uniform(4, 8, (count, 1, 1)), rng.uniform(0, 2 * np.pi, (count, 1, 1))
        y, x = np.mgrid[:height, :width]
        position = x * np.cos(angle) - y * np.sin(angle)  # (N, H, W)
        wave = 0.5 + 0.5 * np.sin(2 * np.pi * position / length + phase)
        noisy_wave = wave + self.noise * rng.standard_normal(wave.shape)
        return Split((255 * noisy_wave.clip(0, 1)).astype(np.uint8)[:, None], label)
