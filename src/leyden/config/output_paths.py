"""Check the paths in a config that libraries write to, which must lie in the run's own folder.

Lightning's callbacks, profilers and strategies take paths under many names (dirpath, filename, nvme_path, output_path),
so one pattern of names covers them all. leyden's and a project's own classes only read from their paths.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from leyden.errors import UserError

LIBRARIES = ("lightning.", "torch.")
PATH_KEYS = re.compile(r"(^|_)(dir|directory|dirpath|file|filename|folder|location|path|root|uri|url)$")
LOGGERS = "lightning.pytorch.loggers."  # these loggers join the names below to the folder that they write to
LOGGER_NAMES = ("name", "version", "filename_suffix")
NAMES = ("file", "filename", *LOGGER_NAMES)  # file names within a folder that another argument names
# Lightning replaces {val/loss:.2f} in a name by a metric's value; `:c` is excluded, since it could yield a slash.
FIELD = re.compile(r"\{\w[\w.-]*(/\w[\w.-]*)*(:\d{0,3}(\.\d{1,3})?[defg%]?)?\}")


def find_outside(path: str, node: Any, target: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key of each output path that leads out of the run's folder, and the message that refuses it."""
    for key, value, owner in _arguments(node, target):
        key_path = f"{path}.{key}"
        if isinstance(value, str) and _is_output_path(key, owner) and _leads_out(value):
            text = (
                f"{key_path}={value!r}: a run writes in its own folder alone: name a place in it, such as {key}=extra"
            )
            yield key_path, text + ", or leave it out"
        elif key == "run_dir" and owner.startswith("leyden."):
            yield key_path, f"{key_path}: leyden sets this itself"
        yield from find_outside(key_path, value, owner)


def with_paths_in(node: Any, folder: Path, target: str = "") -> Any:
    """Return a config node with its output paths moved into `folder`.

    Raises:
        UserError: if a path leads out of it, which `find_outside` reports earlier in a checked config.
    """
    for key, value, owner in _arguments(node, target):
        if isinstance(value, str) and _is_output_path(key, owner) and _leads_out(value):
            raise UserError(f"{key}={value!r} of {owner}: a run writes in its own folder alone")
    if isinstance(node, list):
        return [with_paths_in(value, folder, target) for value in node]
    if not isinstance(node, dict):
        return node
    return {
        key: str(folder / value)
        if isinstance(value, str) and _is_output_path(key, owner) and key not in NAMES
        else with_paths_in(value, folder, owner)
        for key, value, owner in _arguments(node, target)
    }


def _arguments(node: Any, target: str) -> Iterator[tuple[str, Any, str]]:
    """Yield the keys and values of a dict or list, each with the class that gets the argument."""
    if isinstance(node, dict):
        owner = str(node.get("_target_", target))
        yield from ((str(key), value, owner) for key, value in node.items())
    elif isinstance(node, list):
        yield from ((str(index), value, target) for index, value in enumerate(node))


def _is_output_path(key: str, target: str) -> bool:
    is_name = target.startswith(LOGGERS) and key in LOGGER_NAMES
    return is_name or (target.startswith(LIBRARIES) and PATH_KEYS.search(key) is not None)


def _leads_out(value: str) -> bool:
    path = PurePath(value)
    return (
        path.is_absolute()
        or ".." in path.parts
        or value.startswith("~")
        or not value.isprintable()
        or any(symbol in value for symbol in ("\\", "://", "::"))  # fsspec accepts URLs, and chains of them
        or any(symbol in FIELD.sub("", value) for symbol in "{}")
    )
