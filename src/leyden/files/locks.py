"""Locks that end with their process."""

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from leyden.errors import UserError

try:
    import fcntl
except ImportError:
    raise SystemExit("leyden runs on Linux and macOS; on Windows use WSL") from None


@contextlib.contextmanager
def file_lock(path: Path, name: str) -> Iterator[None]:
    """Hold a lock file, which names this process, while in this block.

    Raises:
        UserError: if another live process holds it.
    """
    with path.open("a+") as file:
        if not _acquire(file):
            file.seek(0)
            raise UserError(f"{name} is in use by {file.read().strip() or 'another process'}")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def is_locked(path: Path) -> bool:
    """Return whether a live process holds a lock file."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _acquire(file: IO[str]) -> bool:
    """Try for a second to take the lock, because another process's `is_locked` may hold it for a moment."""
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
