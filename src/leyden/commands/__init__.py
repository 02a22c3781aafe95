"""The commands, one file each: `main(arguments)` returns the exit code."""
