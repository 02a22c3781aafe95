"""Sweeps: a search space, a study that chooses points of it, and the jobs that train them."""
