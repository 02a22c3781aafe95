"""The file of weights that a run starts from, and the copy of it in the run's folder."""

import contextlib
import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

from leyden.config.run_config import Init
from leyden.errors import UserError
from leyden.files import sync_folder

SHARDED = "plain.ckpt"  # a file of a sharded checkpoint: `leyden.checkpoints.layout.PLAIN`, which needs torch
PICKLE = b"\x80"  # the first byte of a file that torch.save wrote before torch 1.6


def is_weights(path: Path) -> bool:
    """Return whether the first bytes of a file are those of a checkpoint, a torch.save or a safetensors file."""
    if path.is_dir():
        return (path / SHARDED).is_file()
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(b"PK"):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
        return True  # a damaged archive, which is reported when it is read
    return head.startswith(PICKLE) or is_safetensors(head, path.stat().st_size)


def is_safetensors(head: bytes, size: int) -> bool:
    """Return whether the first nine bytes of a file are those of a safetensors file: a length, and JSON."""
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def digest(path: Path) -> str:
    """Return the sha256 of a file, or of the list of the files of a folder, in the format of sha256sum."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        lines = (f"{digest(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_path(folder: Path, init: Init) -> Path:
    """Return the path of the copy of its initial weights in a run's folder."""
    return folder / f"init{Path(init['weights']).suffix}"


def copy_weights(init: Init, folder: Path, others: Iterable[Path] = ()) -> None:
    """Copy the weights of a frozen config into the folder of a run, from their file or the copy of another run.

    Raises:
        UserError: if they no longer exist, or have changed since the config was frozen.
        OSError: if they cannot be copied.
    """
    target, temporary = copy_path(folder, init), folder / ".init.tmp"
    sources = [source for source in (*(copy_path(o, init) for o in others), Path(init["weights"])) if source.exists()]
    if not sources:
        raise UserError(f"init.weights={init['weights']} is not there any more: name other weights, init=RUN|FILE")
    source = next((source for source in sources if digest(source) == init.get("sha256")), None)
    if source is None:
        raise UserError(
            f"init.weights={init['weights']} has changed: its sha256 is {digest(sources[-1])[:12]}…, not "
            f"{str(init.get('sha256'))[:12]}…: restore it, or write init={init['weights']} to take it as it is"
        )
    if source.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, copy_function=_link_or_copy)
    else:
        temporary.unlink(missing_ok=True)
        _link_or_copy(source, temporary)
    temporary.replace(target)
    sync_folder(folder)


def check_copy(folder: Path, init: Init) -> Path:
    """Return the path of a run's copy of its initial weights.

    Raises:
        UserError: if it is missing, or has changed since it was copied.
    """
    path = copy_path(folder, init)
    if not path.exists() or digest(path) != init.get("sha256"):
        problem = "has changed (sha256)" if path.exists() else "is missing"
        raise UserError(f"{path}, the weights to start from, {problem}: restore it, or begin another run")
    return path


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """Copy a file; a file of a run is linked where possible, since leyden never changes a checkpoint in place."""
    folders = Path(source).resolve().parents[:3]
    if any((folder / "config.yaml").is_file() and (folder / "manifest.json").is_file() for folder in folders):
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    with Path(target).open("rb") as file:
        os.fsync(file.fileno())
