"""Models of text: language models and translation, with their sampling and beam search."""
