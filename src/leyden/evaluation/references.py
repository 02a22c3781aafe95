"""References: statistics of real pictures' features, computed once and cached in the data folder."""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock

from leyden import checkpoints
from leyden.console import say
from leyden.data.download import data_root
from leyden.errors import UserError, os_error_message
from leyden.files import write_atomically
from leyden.files.formats import REFERENCE
from leyden.metrics.generation import Reference


def cached_reference(key: str, compute: Callable[[], Reference]) -> Reference:
    """Return the reference of a key; the first process that asks for it computes it, while others wait."""
    path = data_root() / "features" / f"{key}.pt"
    reference = _read(path)
    if reference is not None:
        return reference
    with _lock(path):
        reference = _read(path)  # another process may have written it before the lock was free
        if reference is None:
            reference = compute()
            _write(path, reference)
    return reference


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file; if its folder cannot hold lock files, every process may write."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{path}.lock"))
        yield


def _read(path: Path) -> Reference | None:
    """Read a reference; return None if it is missing or damaged.

    Raises:
        UserError: if this version of leyden does not support its format.
    """
    try:
        if checkpoints.problem(path) is not None:
            return None
        content = torch.load(path, map_location="cpu", weights_only=True)
        REFERENCE.check(path, content)
        return Reference(**{key: value for key, value in content.items() if key != "format"})
    except UserError:
        raise
    except Exception:  # the file was removed in the meantime, or other software wrote it
        return None


def _write(path: Path, reference: Reference) -> None:
    """Write a reference atomically, so that several processes may write it."""
    buffer = io.BytesIO()
    torch.save(REFERENCE.stamp(reference._asdict()), buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        again = f"cannot be cached in {path.parent} and will be computed again"
        say(f"the features of the real pictures {again}: {os_error_message(error)}")
