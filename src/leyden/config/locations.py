"""Places: leyden's own conf/, the one of the project in the working directory, and a path as seen from there."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

_INSTALLED = Path(__file__).parents[1] / "conf"  # in a wheel; in a checkout conf/ stands beside src/
CONF = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[3] / "conf"


def project_conf() -> Path | None:
    """The user's own conf/ in the working directory, if there is one."""
    path = Path.cwd() / "conf"
    return path if path.is_dir() else None


def module_path() -> list[str]:
    """Where modules are looked for: the working directory comes last, so that its files shadow nobody else's."""
    here = str(Path.cwd())
    return sys.path if "" in sys.path or here in sys.path else [*sys.path, here]


@contextlib.contextmanager
def installed_only() -> Iterator[None]:
    """Import nothing from the working directory while in this block."""
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if Path(entry).resolve() != Path.cwd()]
    try:
        yield
    finally:
        sys.path[:] = before


def seen(path: Path) -> Path:
    """A path as a person in the working directory would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
