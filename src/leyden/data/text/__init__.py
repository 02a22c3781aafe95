"""Texts for language models, classification and translation."""
