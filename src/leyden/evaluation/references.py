"""References: statistics of the features of real pictures, computed once and cached in the folder of all data."""

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock

from leyden import checkpoints
from leyden.console import say
from leyden.data.download import data_root
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.files.formats import REFERENCE
from leyden.metrics.generation import Reference


def cached_reference(key: str, compute: Callable[[], Reference]) -> Reference:
    """Return the reference of a key, computed by the first process that asks for it while others wait."""
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
    """Hold the lock of a file, unless its folder cannot hold lock files: then every process may write."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{path}.lock"))
        yield


def _read(path: Path) -> Reference | None:
    """Read a reference, None if it is not there or not whole.

    Raises:
        UserError: when this leyden does not read its format.
    """
    try:
        if checkpoints.problem(path) is not None:
            return None
        saved = torch.load(path, map_location="cpu", weights_only=True)
        REFERENCE.check(path, saved)
        return Reference(**{key: value for key, value in saved.items() if key != "format"})
    except UserError:
        raise
    except Exception:  # it was removed meanwhile, or other software wrote it
        return None


def _write(path: Path, reference: Reference) -> None:
    """Write a reference whole or not at all; another process that writes it writes the same."""
    buffer = io.BytesIO()
    torch.save(REFERENCE.stamp(reference._asdict()), buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        say(f"what the real pictures measure is not kept, and will be measured again: {path.parent}: {error}")
