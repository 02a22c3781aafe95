"""Places: leyden's own conf/, the one of the project in the working directory, and a path as seen from there."""

from pathlib import Path

_INSTALLED = Path(__file__).parent / "conf"  # in a wheel; in a checkout conf/ stands beside src/
CONF = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "conf"


def project_conf() -> Path | None:
    """The user's own conf/ in the working directory, if there is one."""
    path = Path.cwd() / "conf"
    return path if path.is_dir() else None


def seen(path: Path) -> Path:
    """A path as a person in the working directory would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
