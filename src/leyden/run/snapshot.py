"""The code as it is now, copied: a job that waits, in a queue or a sweep, runs this, whatever is edited meanwhile."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from leyden.errors import UserError
from leyden.run import git

CODE = {".cfg", ".json", ".py", ".toml", ".yaml", ".yml"}  # what is taken where git does not say what belongs
NEVER = {"__pycache__", "node_modules"}
MADE = (("multirun.yaml", "study"), ("config.yaml", "manifest.json", "status.json"))  # the files of a sweep, of a run


def take(source: Path, target: Path, leave: Path, limit_mb: float) -> list[Path]:
    """Copy a project's files to a new folder; return the folders of it that belong on the module search path.

    Inside a git repository these are the files that git tracks or would track, and links to what it ignores: data
    that a module finds beside itself. Elsewhere they are all that look like code; in both, the compiled modules beside
    Python ones too. Neither what is below `leave` is copied, nor a sweep or a run elsewhere. Links stay links: to the
    copy, if what they name is in it.

    Raises:
        UserError: when there is more than `limit_mb` megabytes (10^6 bytes) of it.
    """
    paths = [path for path in _files(source) if not (source / path).is_relative_to(leave)]
    made = {folder for folder in {p for path in paths for p in path.parents} if _is_made(source / folder)}
    paths = [path for path in paths if made.isdisjoint(path.parents)]
    folders = {path.parent for path in paths if path.suffix == ".py"}
    compiled = {file.relative_to(source) for folder in folders for file in (source / folder).glob("*.so")}
    paths = sorted({*paths, *compiled})
    _check_size(source, paths, limit_mb)
    for path in paths:
        copy = target / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        _copy(source / path, copy, source)
    for path in _ignored(source, leave):
        link = target / path
        if not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source / path)
    return [folder for folder in (target / "src", target) if folder.is_dir()]


def _copy(file: Path, copy: Path, source: Path) -> None:
    if not file.is_symlink():
        shutil.copy2(file, copy)
    elif not file.readlink().is_absolute() and file.resolve().is_relative_to(source):
        copy.symlink_to(file.readlink())
    else:
        copy.symlink_to(file.resolve())


def in_git(folder: Path) -> bool:
    """Whether git says what belongs to the project in a folder; it does not of a folder that it ignores."""
    return bool(_listed(folder, "--cached", "--others"))


def _listed(folder: Path, *which: str) -> list[str]:
    listed = git.ask("ls-files", *which, "--exclude-standard", "-z", folder=folder) or b""
    return os.fsdecode(listed).split("\0")[:-1]


def _ignored(folder: Path, leave: Path) -> Iterator[Path]:
    for name in _listed(folder, "--others", "--ignored", "--directory") if in_git(folder) else []:
        path = folder / name
        if not (_is_venv(path) or path.name in NEVER or path.is_relative_to(leave) or leave.is_relative_to(path)):
            yield Path(name)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the paths, relative to the folder, of the files that make up the project in it."""
    listed = _listed(folder, "--cached", "--others")
    if not listed:
        yield from _code(folder)
    for name in listed:
        path = folder / name
        if path.is_dir() and not path.is_symlink():  # a repository inside this one
            yield from (Path(name) / inner for inner in _files(path))
        elif os.path.lexists(path):  # a file that was deleted is still tracked
            yield Path(name)


def _code(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        here = Path(where)
        linked = [name for name in folders if (here / name).is_symlink()]  # the walk does not go into them
        folders[:] = [name for name in folders if not _is_foreign(here / name)]
        names = [*linked, *(name for name in files if Path(name).suffix in CODE)]
        yield from ((here / name).relative_to(folder) for name in names)


def _is_foreign(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in NEVER or _is_venv(folder)


def _is_venv(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").exists()


def _is_made(folder: Path) -> bool:
    """Whether a folder is a sweep, or a run."""
    return any(all((folder / name).exists() for name in names) for names in MADE)


def _check_size(source: Path, paths: list[Path], limit_mb: float) -> None:
    sizes = {path: (source / path).lstat().st_size / 1e6 for path in paths}
    total = sum(sizes.values())
    if total > limit_mb:
        largest = max(sizes, key=lambda path: sizes[path])
        raise UserError(
            f"{source} holds {total:.0f} MB that would be kept as the code of jobs, {largest} {sizes[largest]:.0f} MB "
            f"of it: name in .gitignore what is no code"
        )
