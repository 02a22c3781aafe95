"""Convert user input (files, texts, numbers) to arrays, by settings that were fitted in training; without torch."""
