"""A composed config, and which override, file and line set each part of it."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from leyden.config import passwords, signatures
from leyden.config.defaults import OVERRIDING_GROUPS, Defaults
from leyden.config.locations import CONF, relative_to_cwd
from leyden.config.run_config import RunConfig
from leyden.config.yaml_files import with_bases

PARTS = ("feature", "optimizer", "schedule")  # only a model reads these nodes, as ${…}


@dataclass
class Composition:
    """A composed config, unresolved (`raw`, with `${…}`) and resolved (`config`), and the sources of its parts."""

    raw: dict[str, Any]
    config: RunConfig
    overrides: list[str] = field(default_factory=list)
    choices: dict[str, Any] = field(default_factory=dict)
    search_path: list[Path] = field(default_factory=list)
    run_dir: str | None = None  # where the user asked Hydra to put the run
    launcher: dict[str, Any] = field(default_factory=dict)  # hydra.launcher: how to start the run
    defaults: list[Defaults] = field(default_factory=list)  # of the person and of the project, the stronger last


def find_referenced_keys(raw: dict[str, Any]) -> set[str]:
    """Return the top-level keys that an interpolation reads, directly or through `PARTS`."""
    referenced_keys: set[str] = set()
    queue = [key for key in raw if key not in PARTS]
    while queue:
        new_keys = set(re.findall(r"\$\{(\w+)", str(raw[queue.pop()]))) - referenced_keys
        referenced_keys |= new_keys
        queue += [key for key in new_keys if key in PARTS and key in raw]
    return referenced_keys


def unused_parts(raw: dict[str, Any]) -> set[str]:
    """Return which of the optimizer, the schedule and the feature network the model does not read."""
    return set(PARTS) - find_referenced_keys(raw)


def drop_unused(composition: Composition) -> None:
    """Drop the parts that the model does not read from the resolved config, which is what the run's folder shows."""
    unused = unused_parts(composition.raw)
    composition.config = cast(RunConfig, {k: v for k, v in composition.config.items() if not v or k not in unused})


def origin(composition: Composition, path: str) -> str:
    """Return what set a path of the config, as ` (from OVERRIDE)` or ` (in FILE:LINE)`; empty if it is unknown."""
    for item in reversed(composition.overrides):
        key = item.split("=", 1)[0].lstrip("+~")
        if path == key or (path.startswith(key + ".") and key in path.split("=")[0] and not (CONF / key).is_dir()):
            is_password = any(path == key_path for key_path, _ in passwords.find_passwords(composition.config))
            return "" if is_password else f" (from {shortened(item)})"
    for file, package in _files(composition):
        line = _line_of(file, path.removeprefix(package + ".") if package else path)
        if line is not None and (not package or path == package or path.startswith(package + ".")):
            is_stronger = file.parent.name in OVERRIDING_GROUPS
            place = None if is_stronger else _place_in_defaults(composition, path, file)
            return f" (in {place or f'{relative_to_cwd(file)}:{line}'})"
    place = _place_in_defaults(composition, path, CONF)
    return f" (in {place})" if place else ""


def _place_in_defaults(composition: Composition, path: str, file: Path) -> str | None:
    """Return which file of defaults sets a key in place of a file of conf/."""
    places = [defaults.place(path) for defaults in reversed(composition.defaults) if defaults.reach(file)]
    return next(filter(None, places), None)


def shortened(value: Any) -> str:
    """Return a value as text for a one-line message, shortened to 60 characters."""
    text = str(value) if str(value).isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _files(composition: Composition) -> Iterator[tuple[Path, str]]:
    """Yield the composed files, from the last one applied to the first, each with its Hydra package."""
    names = [("experiment", composition.choices.get("experiment")), *composition.choices.items(), ("", "train")]
    for group, choice in names:
        for name in choice if isinstance(choice, list) else [choice]:
            relative_path = Path(group.partition("@")[0]) / f"{name}.yaml"
            for file in with_bases(relative_path, composition.search_path) if name else ():
                header = re.search(r"^#\s*@package\s+(\S+)", file.read_text(), re.MULTILINE)
                package = header[1] if header else group.rpartition("@")[2].replace("/", ".")
                yield file, "" if package == "_global_" else package


def _line_of(file: Path, path: str) -> int | None:
    """Return the line of a dotted key in a YAML file."""
    node = yaml.compose(file.read_text(), Loader=yaml.SafeLoader)
    line = None
    for part in path.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        match = next(((k, v) for k, v in pairs if k.value == part), None)
        if match is None:
            return None
        line, node = match[0].start_mark.line + 1, match[1]
    return line


def to_dict(node: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    """Return an OmegaConf node as plain data; `resolve` fills in its `${…}`."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=resolve))


def value_at(tree: Any, path: str) -> Any:
    """Return the value at a dotted path, or None."""
    for part in filter(None, path.split(".")):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def paths(tree: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every key."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if key != "_target_":
            yield f"{prefix}{key}"
            yield from paths(value, f"{prefix}{key}.")


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of every leaf; an empty dict is a leaf."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nearest_key(path: str, tree: dict[str, Any], signature: signatures.Signature | None) -> str:
    """Suggest a similar key: one with the same parent, else one anywhere in the config."""
    parent, _, name = path.rpartition(".")
    node = value_at(tree, parent) if parent else tree
    siblings = {*(node if isinstance(node, dict) else ()), *(signature.parameters if signature else ())}
    siblings -= {"_target_", name}
    if matches := difflib.get_close_matches(name, sorted(siblings), n=1, cutoff=0.7):
        return f"; did you mean {parent + '.' if parent else ''}{matches[0]}?"
    paths_by_name = {p.rpartition(".")[2]: p for p in reversed(list(paths(tree))) if p != path}
    if matches := difflib.get_close_matches(name, sorted(paths_by_name), n=1, cutoff=0.7):
        return f"; did you mean {paths_by_name[matches[0]]}?"
    return f"; {parent or 'the config'} takes: {', '.join(sorted(siblings))}" if siblings else ""
