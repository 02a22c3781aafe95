"""The processes of one training: their ranks, their communication, their signals, and batch norms over all of them."""
