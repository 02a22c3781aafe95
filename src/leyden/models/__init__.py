"""Models: a net with its loss, metrics and optimizer."""
