"""Atomic writes of files, and unused file names."""

import itertools
import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file with `content` so that readers see the old file or the new one, never a part, even after a crash.

    Raises:
        OSError: if the file cannot be written, for example on a full disk; the error names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from error  # on a full disk, the error names no file
        raise


def unused_path(path: Path, ending: str = "") -> Path:
    """Return the first unused path: job.sh, job-2.sh, …, or with an ending: job.sh.old, job.sh.old-2, …"""
    numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    names = (f"{path.name}{ending}{n}" if ending else f"{path.stem}{n}{path.suffix}" for n in numbers)
    return next(candidate for name in names if not os.path.lexists(candidate := path.with_name(name)))


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
