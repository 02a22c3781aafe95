"""Where a run's values, figures and checkpoints go: its own directory always, and the services asked for."""
