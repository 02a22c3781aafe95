"""Locations: leyden's conf/, the conf/ of the project in the working directory, and the module search path."""

import sys
from pathlib import Path

_INSTALLED = Path(__file__).parents[1] / "conf"  # the location in a wheel; in a checkout, conf/ lies beside src/
CONF = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[3] / "conf"


def project_conf() -> Path | None:
    """Return the user's own conf/ in the working directory, if there is one."""
    path = Path.cwd() / "conf"
    return path if path.is_dir() else None


def module_path() -> list[str]:
    """Return the module search path with the working directory last, so that its files shadow no others."""
    folder = str(Path.cwd())
    return sys.path if "" in sys.path or folder in sys.path else [*sys.path, folder]


def relative_to_cwd(path: Path) -> Path:
    """Return a path relative to the working directory if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
