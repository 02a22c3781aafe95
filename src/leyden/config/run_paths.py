"""Arguments by which a config tells a library where to write: they name places in the run's own folder, and no other.

Lightning's callbacks, profilers and strategies take paths under many names (dirpath, filename, nvme_path, output_path),
so a rule by name stands for all of them. leyden's own classes take paths to read, and so do the classes of a project.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from leyden.errors import UserError

LIBRARIES = ("lightning.", "torch.")
PLACE = re.compile(r"(^|_)(dir|directory|dirpath|file|filename|folder|location|path|root|uri|url)$")
LOGGERS = "lightning.pytorch.loggers."  # which join these to the folder that they write to
LOGGER_NAMES = ("name", "version", "filename_suffix")
NAMES = ("file", "filename", *LOGGER_NAMES)  # within a folder that the library chooses, or is given
# Lightning writes what stands in braces into a name, {val/loss:.2f}: a metric, which is no path, and not as a character
FIELD = re.compile(r"\{\w[\w.-]*(/\w[\w.-]*)*(:\d{0,3}(\.\d{1,3})?[defg%]?)?\}")


def problems(path: str, node: Any, target: str = "") -> Iterator[tuple[str, str]]:
    """Yield each place in a node of a config that is not in the run's folder, by its dotted path, and what is wrong."""
    for key, value, own in _arguments(node, target):
        here = f"{path}.{key}"
        if isinstance(value, str) and _is_place(key, own) and _leads_out(value):
            text = f"{here}={value!r}: a run writes in its own folder alone: name a place in it, such as {key}=extra"
            yield here, text + ", or leave it out"
        elif key == "run_dir" and own.startswith("leyden."):
            yield here, f"{here}: leyden sets this itself"
        yield from problems(here, value, own)


def placed(node: Any, folder: Path, target: str = "") -> Any:
    """Return a node of a config, its places those in `folder`.

    Raises:
        UserError: for a place that leads out, where a config was not checked.
    """
    for key, value, own in _arguments(node, target):
        if isinstance(value, str) and _is_place(key, own) and _leads_out(value):
            raise UserError(f"{key}={value!r} of {own}: a run writes in its own folder alone")
    if isinstance(node, list):
        return [placed(value, folder, target) for value in node]
    if not isinstance(node, dict):
        return node
    return {
        key: str(folder / value)
        if isinstance(value, str) and _is_place(key, own) and key not in NAMES
        else placed(value, folder, own)
        for key, value, own in _arguments(node, target)
    }


def _arguments(node: Any, target: str) -> Iterator[tuple[str, Any, str]]:
    """Yield the keys and values of a dict or list, with the class that they are given to."""
    if isinstance(node, dict):
        own = str(node.get("_target_", target))
        yield from ((str(key), value, own) for key, value in node.items())
    elif isinstance(node, list):
        yield from ((str(place), value, target) for place, value in enumerate(node))


def _is_place(key: str, target: str) -> bool:
    is_name = target.startswith(LOGGERS) and key in LOGGER_NAMES
    return is_name or (target.startswith(LIBRARIES) and PLACE.search(key) is not None)


def _leads_out(value: str) -> bool:
    path = PurePath(value)
    return (
        path.is_absolute()
        or ".." in path.parts
        or value.startswith("~")
        or not value.isprintable()
        or any(sign in value for sign in ("\\", "://", "::"))  # fsspec takes addresses, and chains of them
        or any(sign in FIELD.sub("", value) for sign in "{}")
    )
