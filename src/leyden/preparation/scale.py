"""Scaling of numbers to mean 0 and standard deviation 1."""

import numpy as np


def scale(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Scale values (…, F) by the mean and the deviation of each feature, (F,)."""
    return (values - mean) / std


def unscale(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Invert `scale`."""
    return values * std + mean
