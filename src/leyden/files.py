"""Files that are replaced whole, names that are free, and locks that end with their process."""

import contextlib
import fcntl
import itertools
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from leyden.errors import UserError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file with `content` so that a reader, or a crash, sees the old one or the new one."""
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
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file
        raise


def free_path(path: Path) -> Path:
    """Return the path, or with -2, -3, … in its name the first one that is free."""
    tried = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(p for p in itertools.chain([path], tried) if not p.exists())


@contextlib.contextmanager
def file_lock(path: Path, name: str) -> Iterator[None]:
    """Hold a lock file while in this block; it says by whom it is held.

    Raises:
        UserError: when another live process holds it.
    """
    with path.open("a+") as file:
        if not _locks(file):
            file.seek(0)
            raise UserError(f"{name} is in use by {file.read().strip() or 'another process'}")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def is_locked(path: Path) -> bool:
    """Tell whether a live process holds a lock file."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _locks(file: IO) -> bool:
    """Take the lock; who only looks whether it is held lets go within a second."""
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        except OSError as error:
            raise UserError(
                f"{file.name} cannot be locked: {error.strerror}; runs need a file system with locks"
            ) from error
        else:
            return True
    return False
