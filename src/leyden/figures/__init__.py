"""Figures, mosaics of pictures, plots in a terminal, and the reading of picture files."""
