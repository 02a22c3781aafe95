"""Figures, mosaics of pictures, plots in a terminal, and safe reading of picture files."""
