"""Defaults of a person and of a project: values and choices that replace those in the files of conf/.

A person, or a lab for its members, writes them into ~/.config/leyden.yaml. A project writes them below `defaults` in
its conf/project.yaml. Their keys are those of overrides. A person's defaults replace values in leyden's files only, a
project's also those in its own files. A project's defaults take precedence over a person's; experiments and the command
line take precedence over both.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leyden.config import passwords, signatures
from leyden.config.locations import CONF, FOLDERS, project_conf, relative_to_cwd, user_file
from leyden.config.yaml_files import check_encoding, load_untrusted
from leyden.errors import UserError, nearest

OVERRIDING_GROUPS = ("experiment", "sweep")  # their files take precedence over all defaults
HYDRA_KEYS = ("hydra.launcher.", "hydra.sweeper.")
KEY = re.compile(r"[\w@-]+([./][\w@-]+)*")
PROJECT_KEYS = ("targets", "defaults")


class Defaults(NamedTuple):
    """The defaults in one file, by their dotted keys; `is_personal` tells a person's file from a project's."""

    file: Path
    values: dict[str, Any]
    is_personal: bool

    def reach(self, file: Path) -> bool:
        """Return whether these defaults may replace values in a config file."""
        return not self.is_personal or file.is_relative_to(CONF)

    def place(self, key: str) -> str | None:
        """Return the name of the defaults' file if it sets a key or a part of the key's value, else None."""
        is_set = any(key == name or (key.startswith(f"{name}.") and not _is_group(name)) for name in self.values)
        return str(relative_to_cwd(self.file)) if is_set else None


def read_defaults() -> list[Defaults]:
    """Return the defaults of the person, then those of the project in the working directory.

    Raises:
        UserError: if a file cannot be read, belongs to somebody else, or has a key that no config has.
    """
    personal = Defaults(user_file(), _read_personal_file(), is_personal=True)
    conf = project_conf()
    project = Defaults((conf or CONF) / "project.yaml", _flatten(read_project_file().get("defaults")), False)
    files = [defaults for defaults in (personal, project) if defaults.values]
    for defaults in files:
        _check(defaults, conf)
    return files


def describe(files: list[Defaults]) -> dict[str, dict[str, Any]]:
    """Return the defaults as plain data, by the names of their files."""
    return {str(relative_to_cwd(defaults.file)): defaults.values for defaults in files}


def is_read_by_project(key: str, files: list[Defaults]) -> bool:
    """Return whether the project's defaults set a key that a ${…} in some file of its conf/ reads."""
    own_keys = {name.partition(".")[0] for defaults in files if not defaults.is_personal for name in defaults.values}
    conf = project_conf()
    texts = (file.read_text(errors="replace") for file in conf.rglob("*.yaml")) if conf and key in own_keys else ()
    return any(re.search(rf"\$\{{{re.escape(key)}\b", text) for text in texts)


def set_folders() -> None:
    """Set LEYDEN_DATA and LEYDEN_RUNS as the person's file says, where the environment does not set them."""
    for name, value in _read_personal_file().items():
        if name in FOLDERS:
            if not isinstance(value, str) or not value:
                raise UserError(f"{user_file()}: {name} should be the path of a folder")
            os.environ.setdefault(name, str(Path(value).expanduser()))


def read_project_file() -> dict[str, Any]:
    """Return the content of ./conf/project.yaml: `targets`, the project's packages, and `defaults`.

    Raises:
        UserError: if it is not of this form.
    """
    conf = project_conf()
    file = conf / "project.yaml" if conf else None
    if file is None or not file.is_file():
        return {}
    content = load_untrusted(file, _load)
    targets = content.get("targets", []) if isinstance(content, dict) else None
    is_valid = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    if not is_valid or not content or content.keys() - {*PROJECT_KEYS}:
        raise UserError(f"{file}: should read `targets: [my_package]`, and may have `defaults: {{KEY: VALUE}}`")
    return content


def with_choices(config_path: str, entries: ListConfig, files: list[Defaults]) -> ListConfig:
    """Return the defaults list of conf/train.yaml with the choices of `files`, or any other list unchanged."""
    if config_path != "train":
        return entries
    items: list[Any] = [OmegaConf.to_container(entry) if OmegaConf.is_config(entry) else entry for entry in entries]
    for defaults in files:
        for group, choice in defaults.values.items():
            if not _is_group(group):
                continue
            index = next((i for i, item in enumerate(items) if isinstance(item, dict) and group in item), None)
            if index is None:
                items.insert(items.index("_self_"), {group: choice})
            else:
                items[index] = {group: choice}
    return OmegaConf.create(items)


def fill_in(result: ConfigResult, config_path: str, folder: Path, files: list[Defaults]) -> None:
    """Replace values of a config file, which Hydra has loaded from a folder, by the defaults of `files`.

    A key of a group replaces what a choice sets, or sets an argument that its class takes. The other keys belong to
    conf/train.yaml, where any may be set: the config check refuses those that leyden does not know.
    """
    group = config_path.rpartition("/")[0]
    if not isinstance(result.config, DictConfig) or group.partition("/")[0] in OVERRIDING_GROUPS:
        return
    package = _package(result, group)
    for defaults in files:
        for key, value in defaults.values.items() if defaults.reach(folder / config_path) else ():
            if key in FOLDERS or _is_group(key) or not key.startswith(package):
                continue
            path = key.removeprefix(package)
            is_own_key = config_path == "train" and _group_of(key) is None
            if is_own_key or _fits(OmegaConf.to_container(result.config), path):
                try:
                    OmegaConf.update(result.config, path, value, merge=False, force_add=True)
                except OmegaConfBaseException as error:
                    raise UserError(f"{defaults.file}: {key}={value}: there is no such key") from error


def _package(result: ConfigResult, group: str) -> str:
    """Return the prefix that the keys of a file have in the config, such as `logger.`, or ""."""
    package = result.header.get("package") or group.replace("/", ".")
    return "" if package in ("", "_global_") else f"{package}."


def _read_personal_file() -> dict[str, Any]:
    file = user_file()
    if not os.path.isfile(file):  # noqa: PTH113  Path.is_file may raise an error for an unreadable folder
        return {}
    if file.stat().st_uid != os.getuid():
        raise UserError(f"{file} belongs to another user: leyden takes defaults only from your own file")
    content = load_untrusted(file, _load)
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{file}: should hold lines KEY: VALUE, such as `logger: wandb`")
    return _flatten(content)


def _load(file: Path) -> Any:
    check_encoding(file)
    return yaml.safe_load(file.read_bytes())


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted keys."""
    values: dict[str, Any] = {}
    for key, value in node.items() if isinstance(node, dict) else ():
        path = f"{prefix}{key}"
        values |= _flatten(value, f"{path}.") if isinstance(value, dict) and value else {path: value}
    return values


def _check(defaults: Defaults, conf: Path | None) -> None:
    """Refuse passwords, and keys that have no effect in any config."""
    folders = [CONF] if defaults.is_personal or conf is None else [CONF, conf]
    for key, value in defaults.values.items():
        parent, _, name = key.rpartition(".")
        problem = next((text for _, text in passwords.find_passwords({name: value}, parent)), None)
        problem = problem or _key_problem(key, value, folders, is_personal=defaults.is_personal)
        if problem:
            raise UserError(f"{relative_to_cwd(defaults.file)}: {problem}")


def _key_problem(key: str, value: Any, folders: list[Path], *, is_personal: bool) -> str | None:
    if not KEY.fullmatch(key):  # its parts become paths below conf/
        return f"{key!r} is not a key: write GROUP or GROUP.NAME, such as logger.wandb.entity"
    if key in FOLDERS:
        return None if is_personal else f"{key} is set in the environment, or in {user_file()}"
    group = _group_of(key)
    if key.partition(".")[0].partition("/")[0] in OVERRIDING_GROUPS:
        return f"{key}: an experiment or a sweep is chosen on the command line"
    if key.startswith("hydra") and not key.startswith(HYDRA_KEYS):
        return f"{key}: the only keys of hydra that can have defaults are {' and '.join(f'{k}*' for k in HYDRA_KEYS)}"
    if _is_group(key):
        names = value if isinstance(value, list) else [value]
        is_valid = all(isinstance(name, str) for name in names) or value is None
        return None if is_valid else f"{key}={value}: should be the name of a choice"
    if group is None:
        return None
    path, siblings = key.removeprefix(group.replace("/", ".") + "."), set()
    for node in _nodes(group, folders):
        for candidate in (path, key):  # the files of some groups set keys anywhere in the config
            if _fits(node, candidate):
                return None
        siblings |= _names_beside(node, path)
    return f"{key}: no choice of {group} has such a key{nearest(key.rpartition('.')[2], siblings)}"


def _nodes(group: str, folders: list[Path]) -> Iterator[Any]:
    for folder in folders:
        for file in sorted((folder / group).glob("**/*.yaml")):
            yield load_untrusted(file, lambda path: yaml.safe_load(path.read_bytes()))


def _fits(node: Any, path: str) -> bool:
    """Return whether a node has a key at a dotted path, or takes it as an argument."""
    parent, name = _parent(node, path)
    return isinstance(parent, dict) and (name in parent or signatures.takes(parent.get("_target_"), name))


def _names_beside(node: Any, path: str) -> set[str]:
    parent, _ = _parent(node, path)
    return {str(name) for name in parent if name not in ("_target_", "defaults")} if isinstance(parent, dict) else set()


def _parent(node: Any, path: str) -> tuple[Any, str]:
    *parents, name = path.split(".")
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    return node, name


def _is_group(key: str) -> bool:
    """Return whether a key names a group of leyden's conf/ or of the project's."""
    return any((folder / key).is_dir() for folder in (CONF, project_conf()) if folder)


def _group_of(key: str) -> str | None:
    """Return the group that a dotted key belongs to, such as hydra/launcher for hydra.launcher.partition, or None."""
    parts = key.split(".")
    names = ("/".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    return next((name for name in names if name != "hydra" and _is_group(name)), None)
