"""YAML files of conf/ and of runs: a group's choices and their bases, and a check of aliases in untrusted files."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from leyden.config.locations import relative_to_cwd
from leyden.errors import UserError

MAX_VALUES = 10_000  # in a file with aliases, counted after they are expanded; a whole config has a few hundred


def is_base(name: str) -> bool:
    """Return whether a file with this name is a base of other files, not a choice of its group."""
    return name.startswith("_")


def choices(folder: Path) -> list[Path]:
    """Return the files in a group's folder that are choices, sorted by name."""
    return [file for file in sorted(folder.glob("*.yaml")) if not is_base(file.stem)]


def with_bases(relative_path: Path, search_path: list[Path]) -> Iterator[Path]:
    """Yield the path of a file such as `data/mnist.yaml` and those of its bases, in reverse order of application.

    Nothing is yielded if the file is in no folder of the search path.
    """
    file = next((folder / relative_path for folder in search_path if (folder / relative_path).is_file()), None)
    if file is None:
        return
    node = yaml.safe_load(file.read_text())
    defaults = (node.get("defaults") if isinstance(node, dict) else None) or []
    names = [name for name in defaults if isinstance(name, str)]
    for name in reversed(names if "_self_" in names else [*names, "_self_"]):
        if name == "_self_":
            yield file
        else:
            yield from with_bases(relative_path.parent / f"{name}.yaml", search_path)


def check_encoding(path: Path) -> None:
    """Refuse a file that is not UTF-8 text.

    Raises:
        UserError: with the file and the line.
    """
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{relative_to_cwd(path)}:{line}: not UTF-8 text: save the file as UTF-8") from error


def check_aliases(path: Path) -> None:
    """Refuse a YAML file whose nested aliases would expand to more than MAX_VALUES values.

    Raises:
        UserError: if there are too many. Other errors in the file are left to the caller that loads it.
    """
    content = path.read_bytes()
    if b"&" not in content or b"*" not in content:
        return
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return
    if _num_values(root, {}) > MAX_VALUES:
        raise UserError(f"{relative_to_cwd(path)}: its YAML aliases (*name) stand for more than {MAX_VALUES:,} values")


def load_untrusted(path: Path, load: Callable[[Path], Any]) -> Any:
    """Load a YAML file of a run or a sweep.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        check_aliases(path)
        return load(path)
    except UserError:
        raise
    except Exception as error:  # errors of the file system, YAML or OmegaConf, or a RecursionError
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UserError(f"{path} cannot be read: {reason}") from error


def _num_values(node: yaml.Node | None, counts: dict[int, int]) -> int:
    """Count the values of a node with its aliases expanded; a node that contains itself counts as too many."""
    if id(node) not in counts:
        counts[id(node)] = MAX_VALUES + 1
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        children = chain.from_iterable(children) if isinstance(node, yaml.MappingNode) else children
        counts[id(node)] = 1 + sum(_num_values(child, counts) for child in children)
    return counts[id(node)]
