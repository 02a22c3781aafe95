"""Generative adversarial networks: the model, its losses and penalties, its measurements and figures."""
