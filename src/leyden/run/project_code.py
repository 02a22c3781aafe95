"""The project's code: copies for jobs that start later, and the source files that a run has imported."""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from leyden import git
from leyden.config.user_code import is_user_code
from leyden.errors import UserError

CODE_SUFFIXES = {".cfg", ".json", ".py", ".toml", ".yaml", ".yml"}  # copied if there is no git repository
SKIPPED_FOLDERS = {"__pycache__", "node_modules"}
# files that mark the folder of a sweep, and of a run
OUTPUT_FILES = (("multirun.yaml", "study"), ("config.yaml", "manifest.json", "status.json"))


def copy_code(source: Path, target: Path, exclude: Path, limit_mb: float) -> list[Path]:
    """Copy a project's files to a new folder; return its folders that belong on the module search path.

    In a git repository, tracked and untracked files are copied, and the copy links to ignored files, such as data
    beside a module. Elsewhere, files with CODE_SUFFIXES are copied. Compiled modules beside Python files are copied
    too; runs, sweeps and everything below `exclude` are left out. Links stay links, and point into the copy if it holds
    their target.

    Raises:
        UserError: if the files are larger than `limit_mb` megabytes (10^6 bytes).
    """
    paths = [path for path in _files_to_copy(source) if not (source / path).is_relative_to(exclude)]
    parents = {parent for path in paths for parent in path.parents}
    output_folders = {
        p for p in parents for names in OUTPUT_FILES if all((source / p / name).exists() for name in names)
    }
    paths = [path for path in paths if output_folders.isdisjoint(path.parents)]
    folders = {path.parent for path in paths if path.suffix == ".py"}
    compiled_modules = {file.relative_to(source) for folder in folders for file in (source / folder).glob("*.so")}
    paths = sorted({*paths, *compiled_modules})
    _check_size(source, paths, limit_mb)
    for path in paths:
        copy = target / path
        file = source / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_symlink():
            shutil.copy2(file, copy)
        elif not file.readlink().is_absolute() and file.resolve().is_relative_to(source):
            copy.symlink_to(file.readlink())
        else:
            copy.symlink_to(file.resolve())
    for path in _ignored_paths(source, exclude):
        link = target / path
        if not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source / path)
    return [folder for folder in (target / "src", target) if folder.is_dir()]


def project_files() -> dict[str, Path]:
    """Return the source files of the project's loaded modules, by module name.

    Module names are the same in the copy of the project that a job of a sweep or of SLURM runs. `__main__` is left out,
    because it is the program that was started.
    """
    files = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")
        is_module = isinstance(file, str) and name not in ("__main__", "__mp_main__")
        if is_module and is_user_code(file) and Path(file).is_file():
            files[name] = Path(file)
    return files


def digests(files: dict[str, Path]) -> dict[str, str]:
    """Return the sha256 of each file."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())}


def in_git(folder: Path) -> bool:
    """Return whether git lists files of a folder; it lists none of a folder that it ignores."""
    return bool(_git_files(folder, "--cached", "--others"))


def _git_files(folder: Path, *options: str) -> list[str]:
    output = git.run_git("ls-files", *options, "--exclude-standard", "-z", folder=folder) or b""
    return os.fsdecode(output).split("\0")[:-1]


def _ignored_paths(folder: Path, exclude: Path) -> Iterator[Path]:
    for name in _git_files(folder, "--others", "--ignored", "--directory") if in_git(folder) else []:
        path = folder / name
        if not (_is_skipped(path) or path.is_relative_to(exclude) or exclude.is_relative_to(path)):
            yield Path(name)


def _files_to_copy(folder: Path) -> Iterator[Path]:
    """Yield the paths of the project's files in a folder, relative to the folder."""
    names = _git_files(folder, "--cached", "--others")
    if not names:
        yield from _code_files(folder)
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():  # another repository inside this one
            yield from (Path(name) / file for file in _files_to_copy(path))
        elif os.path.lexists(path):  # git still tracks a file that was deleted
            yield Path(name)


def _code_files(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        parent = Path(root)
        links = [name for name in folders if (parent / name).is_symlink()]  # os.walk does not enter them
        folders[:] = [name for name in folders if not (name.startswith(".") or _is_skipped(parent / name))]
        names = [*links, *(name for name in files if Path(name).suffix in CODE_SUFFIXES)]
        yield from ((parent / name).relative_to(folder) for name in names)


def _is_skipped(folder: Path) -> bool:
    """Return whether a folder never holds the project's code, such as a virtual environment."""
    return folder.name in SKIPPED_FOLDERS or (folder / "pyvenv.cfg").exists()


def _check_size(source: Path, paths: list[Path], limit_mb: float) -> None:
    sizes = {path: (source / path).lstat().st_size / 1e6 for path in paths}
    total = sum(sizes.values())
    if total > limit_mb:
        largest = max(sizes, key=sizes.__getitem__)
        advice = f"{largest} {sizes[largest]:.0f} MB of it: list in .gitignore what is not code"
        raise UserError(f"{source} holds {total:.0f} MB that would be copied as the code of jobs, {advice}")
