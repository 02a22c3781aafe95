"""Checkpoints: plain data and tensors, each whole or absent, checked before anything trusts it."""

from leyden.checkpoints.io import AtomicCheckpointIO, load, load_weights, origin, problem, remove

__all__ = ["AtomicCheckpointIO", "load", "load_weights", "origin", "problem", "remove"]
