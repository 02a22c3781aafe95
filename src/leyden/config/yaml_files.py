"""YAML files of unknown origin: a few aliases must not stand for millions of values."""

from itertools import chain
from pathlib import Path

import yaml

from leyden.config.locations import relative_to_cwd
from leyden.errors import UserError

MAX_VALUES = 10_000  # values of a file with aliases, once these are filled in; a whole config has a few hundred


def check_aliases(path: Path) -> None:
    """Refuse a YAML file whose nested aliases stand for so many values that expanding them would take for ever.

    Raises:
        UserError: which names the file. Whoever loads the file reports what else is wrong with it.
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


def _num_values(node: yaml.Node | None, counts: dict[int, int]) -> int:
    """Count the values that a node holds with its aliases filled in; a node inside of itself counts as too many."""
    if id(node) not in counts:
        counts[id(node)] = MAX_VALUES + 1
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        children = chain.from_iterable(children) if isinstance(node, yaml.MappingNode) else children
        counts[id(node)] = 1 + sum(_num_values(child, counts) for child in children)
    return counts[id(node)]
