"""The ranks of one training: their detection, communication and signals, and batch norms over all ranks."""
