"""Locations: leyden's conf/, that of the project in the working directory, a person's file, the module search path."""

import os
import sys
from pathlib import Path

_INSTALLED = Path(__file__).parents[1] / "conf"  # the location in a wheel; in a checkout, conf/ lies beside src/
CONF = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[3] / "conf"


def user_file() -> Path:
    """Return the file with a person's own defaults, ~/.config/leyden.yaml, which need not exist."""
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(folder if folder.startswith("/") else os.path.expanduser("~/.config"), "leyden.yaml")  # noqa: PTH111


def project_conf() -> Path | None:
    """Return the user's own conf/ in the working directory, if there is one."""
    path = Path.cwd() / "conf"
    return path if path.is_dir() else None


def separate_project_conf() -> Path | None:
    """Return the user's own conf/ if it is not leyden's, as it is in leyden's repository."""
    path = project_conf()
    return path if path and path.resolve() != CONF.resolve() else None


def replacing_files() -> list[Path]:
    """Return the files of the project's conf/ that are used in place of leyden's files of the same names."""
    folder = separate_project_conf()
    files = [file for depth in ("*", "*/*") for file in sorted(folder.glob(f"{depth}/*.yaml"))] if folder else []
    return [file for file in files if folder and (CONF / file.relative_to(folder)).is_file()]


def module_path() -> list[str]:
    """Return the module search path with the working directory last, so that its files shadow no others."""
    folder = str(Path.cwd())
    return sys.path if "" in sys.path or folder in sys.path else [*sys.path, folder]


def relative_to_cwd(path: Path) -> Path:
    """Return a path relative to the working directory if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
