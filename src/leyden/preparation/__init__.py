"""Conversion of user input (files, texts, numbers) to arrays, by plain data fitted in training; without torch."""
