"""The run directory: its records, the search for runs, and the code that a run was started with; needs no torch."""
