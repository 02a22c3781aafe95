"""Locate leyden's conf/, the user's project and its conf/, the person's own file, and the module search path."""

import contextlib
import os
import pwd
import stat
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from leyden.console import complain

_INSTALLED = Path(__file__).parents[1] / "conf"  # the location in a wheel; in a checkout, conf/ lies beside src/
FOLDERS = ("LEYDEN_DATA", "LEYDEN_RUNS")  # environment variables that name folders
CONF = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[3] / "conf"


def make_folders_absolute() -> None:
    """Make LEYDEN_DATA and LEYDEN_RUNS absolute, so that a change of the working directory does not affect them."""
    for name in FOLDERS:
        if value := os.environ.get(name):
            os.environ[name] = os.path.abspath(value)  # noqa: PTH100  Path.resolve would follow links


def user_file() -> Path:
    """Return the file with a person's own defaults, ~/.config/leyden.yaml, which need not exist."""
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(folder if folder.startswith("/") else os.path.expanduser("~/.config"), "leyden.yaml")  # noqa: PTH111


def project_root(folder: str | Path = "") -> Path:
    """Return the folder of the project that a folder, by default the working directory, belongs to.

    It is the folder itself if it has a conf/, else the nearest folder above it that holds conf/project.yaml, else the
    folder itself. A folder above may belong to anybody, and its code would run, so it counts only if nobody but the
    user, root and their groups could have written it. The search ends at the home folder.
    """
    # pathlib would be too slow for a list of thousands of runs
    folder = os.path.abspath(folder) if folder else os.getcwd()  # noqa: PTH100, PTH109
    root = None if os.path.isdir(f"{folder}/conf") else _project_above(folder)  # noqa: PTH112
    return Path(folder if root is None or _is_untrusted(root) else root)


def _project_above(folder: str) -> str | None:
    home = _real_path(os.path.expanduser("~"))  # noqa: PTH111
    while folder != home and (folder := os.path.dirname(folder)).strip("/"):  # noqa: PTH120
        if os.path.isfile(f"{folder}/conf/project.yaml"):  # noqa: PTH113
            return folder
    return None


_real_path = cache(os.path.realpath)


def _is_untrusted(root: str) -> bool:
    """Return whether others could have written a project's folder, its conf/ or its project.yaml, and say so once."""
    for path in (root, f"{root}/conf", f"{root}/conf/project.yaml"):
        status = os.stat(path)  # noqa: PTH116
        if status.st_uid not in (os.getuid(), 0):
            _report_untrusted(root, f"{path} belongs to {_user_name(status.st_uid)}")
            return True
        if status.st_mode & stat.S_IWOTH:
            _report_untrusted(root, f"everyone may write to {path}")
            return True
    return False


@cache
def _report_untrusted(root: str, reason: str) -> None:
    complain(f"the project in {root} is not used here, because {reason}: if you trust its code, cd {root}")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


@contextlib.contextmanager
def in_project_folder() -> Iterator[None]:
    """Change to the project's folder, where the relative paths of a config start, within the block."""
    with contextlib.chdir(project_root()):
        yield


def project_conf() -> Path | None:
    """Return the conf/ of the user's project, if there is one."""
    path = project_root() / "conf"
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
    """Return the module search path with the project's folder last, so that its files shadow no others."""
    folder = str(project_root())
    is_searched = folder in sys.path or ("" in sys.path and folder == str(Path.cwd()))
    return sys.path if is_searched else [*sys.path, folder]


def relative_to_cwd(path: Path) -> Path:
    """Return a path relative to the working directory if it lies there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
