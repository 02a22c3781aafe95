"""Finished folders: written once, and verified after each copy.

A folder appears under its name only when it is complete. Its index.json, written last, names each file with
its size and sha256, and the folder's kind and format:

    {"format": 3, "kind": "token files", "files": {"train.npy": {"size": 1128, "sha256": "5f70bf18…"}}}
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NotRequired

from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic refuses typing.TypedDict before Python 3.12

from leyden.errors import UserError
from leyden.files.atomic import sync_folder
from leyden.files.formats import Format

INDEX = "index.json"


class Entry(TypedDict):
    """The entry of a file in the index."""

    size: NonNegativeInt
    sha256: str


class Index(TypedDict):
    """The content of index.json."""

    format: NotRequired[int]
    kind: str
    files: dict[str, Entry]


_index = TypeAdapter(Index)


@contextlib.contextmanager
def write_folder(target: Path, kind: Format) -> Iterator[Path]:
    """Yield an empty folder to write files to; after this block it is finished and gets the path `target`.

    Raises:
        UserError: if `target` exists already.
        OSError: if a file could not be written.
    """
    with _atomic_folder(target) as temporary:
        yield temporary
        paths = sorted(path for path in temporary.rglob("*") if path.is_file())
        files = {
            path.relative_to(temporary).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
            for path in paths
        }
        (temporary / INDEX).write_text(json.dumps(kind.stamp({"kind": kind.kind, "files": files}), indent=1) + "\n")


def open_folder(folder: Path, kind: Format) -> list[str]:
    """Check the index and the file sizes of a finished folder; return the names of its files.

    The content of the files is not read; `verify_folder` does that.

    Raises:
        UserError: if it is damaged, or has a format that this leyden does not read.
    """
    files = _read_index(folder, kind)
    for name, entry in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder} is damaged: {name}, which its {INDEX} names, lies outside of it: {kind.remedy}")
        size = path.stat().st_size if path.is_file() else None
        if size != entry["size"]:
            problem = "is missing" if size is None else f"has {size} bytes, not {entry['size']}"
            raise UserError(f"{folder} is damaged: {name} {problem}: {kind.remedy}")
    return list(files)


def verify_folder(folder: Path, kind: Format) -> None:
    """Check a finished folder as `open_folder` does, and the sha256 of each file.

    Raises:
        UserError: if it is damaged, or has a format that this leyden does not read.
    """
    open_folder(folder, kind)
    for name, entry in _read_index(folder, kind).items():
        if _sha256(folder / name) != entry["sha256"]:
            raise UserError(f"{folder} is damaged: the content of {name} has changed (sha256): {kind.remedy}")


def copy_folder(source: Path, target: Path, kind: Format) -> None:
    """Copy a finished folder; the copy appears only after it is verified.

    Raises:
        UserError: if the source is damaged or has another format, or `target` exists already.
        OSError: if a file could not be read or written.
    """
    with _atomic_folder(target) as temporary:
        for name in (*open_folder(source, kind), INDEX):
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, path)
        try:
            verify_folder(temporary, kind)
        except UserError as error:
            raise UserError(str(error).replace(str(temporary), str(source), 1)) from error


@contextlib.contextmanager
def _atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside `target`, which takes its place when the block ends without an error."""
    if os.path.lexists(target):
        raise UserError(f"{target} exists already: remove it, or name another folder")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # a killed process with the same pid may have left it
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            else:
                sync_folder(path)
        sync_folder(temporary)
        temporary.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_index(folder: Path, kind: Format) -> dict[str, Entry]:
    path = folder / INDEX
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} is damaged: {INDEX} is missing: {kind.remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder} is damaged: {INDEX} is not JSON: {kind.remedy}") from error
    if isinstance(content, dict) and content.get("kind") == kind.kind:
        kind.check(path, content)
    try:
        index = _index.validate_python(content, strict=True)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"]) or "the whole file"
        raise UserError(f"{folder} is damaged: {INDEX}: {key} is missing or wrong: {kind.remedy}") from error
    if index["kind"] != kind.kind:
        raise UserError(f"{folder} holds {index['kind']}, not {kind.kind}: name another folder")
    return index["files"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
