"""Figures, mosaics of pictures, and plots in a terminal; picture files, opened with care."""
