"""Sampling of training data: each sample once an epoch, or with replacement, weighted by the size of its class."""

from typing import Literal

import numpy as np

Sampling = Literal["uniform", "balanced", "sqrt"]
EXPONENTS = {"balanced": 0.0, "sqrt": 0.5}  # q of Kang et al. 2020


def draw_probabilities(labels: np.ndarray, sampling: Sampling) -> np.ndarray | None:
    """Return the probability (N,) of drawing each sample of classes `labels` (N,); None: each once an epoch.

    Class k is drawn with a probability proportional to n_k ** q, where n_k is its number of samples (Kang et al. 2020,
    equation 1): q is 0 for `balanced`, so that all classes are equally frequent, and 1/2 for `sqrt`.
    """
    if sampling == "uniform":
        return None
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = (counts ** (EXPONENTS[sampling] - 1.0))[classes]
    return weights / weights.sum()


def draw_order(rng: np.random.Generator, size: int, probabilities: np.ndarray | None) -> np.ndarray:
    """Draw the `size` indices (N,) of an epoch: a permutation, or with replacement by the `probabilities` (N,)."""
    return rng.permutation(size) if probabilities is None else rng.choice(size, size, p=probabilities)
