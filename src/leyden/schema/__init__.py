"""Schemas: descriptions by which a user's samples are read and answers are shown to the user; without torch."""
