"""leyden: a research run is one directory, and anything can start again from it."""

__version__ = "0.1.0"
