"""What every rank does with a run: config to objects, the training loop, and how ranks work together."""
