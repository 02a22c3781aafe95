"""Compose a config from a command line, check it, and build objects from its nodes; needs no torch."""
