"""Text to continue, and sentences with their translations."""
