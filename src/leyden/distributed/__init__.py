"""The ranks of one training: detecting them, their communication, their signals, and batch norms over all ranks."""
