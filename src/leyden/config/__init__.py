"""From a command line to a checked, plain config, and from its nodes to objects; needs no torch."""
