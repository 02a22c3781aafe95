"""Schemas: how a user's samples are read, and how answers are shown to the user; without torch."""
