"""Checkpoints: plain data and tensors, each whole or absent, and checked before they are used."""

from leyden.checkpoints.io import AtomicCheckpointIO, load, load_weights, origin, problem, remove

__all__ = ["AtomicCheckpointIO", "load", "load_weights", "origin", "problem", "remove"]
