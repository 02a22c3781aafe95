"""Labelled sequences of unequal length."""
