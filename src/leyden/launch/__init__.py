"""Start the run in a directory: in this process, on local ranks, under torchrun, or in SLURM's queue."""
