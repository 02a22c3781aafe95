"""Callbacks: checkpoints, logging, the cost of training, progress, samples and predictions."""
