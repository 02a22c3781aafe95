"""`leyden compare`: which group of runs is better and how certainly, from the files of their run directories."""
