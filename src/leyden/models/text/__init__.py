"""Models of text: language models, translation, and how both choose the next token."""
