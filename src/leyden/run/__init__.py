"""The run directory: what it holds, how runs are found, and where their code came from; needs no torch."""
