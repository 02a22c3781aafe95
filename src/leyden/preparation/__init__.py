"""From what a person gives (a file, a text, numbers) to arrays, by plain data fitted in training; knows no torch."""
