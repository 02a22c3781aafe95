"""leyden in Python and notebooks: `leyden.train`, `leyden.Run` and the other names that `import leyden` offers."""
