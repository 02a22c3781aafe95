"""`leyden compare`: compare groups of runs from the files in their directories, with intervals and tests."""
