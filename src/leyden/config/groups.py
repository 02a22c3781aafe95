"""The files of a group in conf/: choices, and the bases `_*.yaml` that choices are built on by their defaults lists."""

from collections.abc import Iterator
from pathlib import Path

import yaml


def is_base(name: str) -> bool:
    """Whether a file of this name is a base of others, and no choice."""
    return name.startswith("_")


def choices(folder: Path) -> list[Path]:
    """Return the files that a group's folder offers as choices, in the order of their names."""
    return [file for file in sorted(folder.glob("*.yaml")) if not is_base(file.stem)]


def with_bases(relative: Path, search_path: list[Path]) -> Iterator[Path]:
    """Yield a file such as `data/mnist.yaml` and the files of its group in its defaults list, the last applied first.

    Nothing is yielded for a file that no folder of the search path has.
    """
    file = next((folder / relative for folder in search_path if (folder / relative).is_file()), None)
    if file is None:
        return
    node = yaml.safe_load(file.read_text())
    defaults = (node.get("defaults") if isinstance(node, dict) else None) or []
    names = [name for name in defaults if isinstance(name, str)]
    for name in reversed(names if "_self_" in names else [*names, "_self_"]):
        if name == "_self_":
            yield file
        else:
            yield from with_bases(relative.parent / f"{name}.yaml", search_path)
