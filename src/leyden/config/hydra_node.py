"""Checks of the node `hydra` of a config, from which Hydra builds objects, opens files and sets environment variables.

Hydra trusts what it composes; leyden does not, since an experiment may be somebody else's. `CheckedLoader` composes
for leyden, and checks every config, including those of a sweep's jobs, before Hydra acts on it.
"""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from hydra import __version__ as hydra_version
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.launcher import Launcher
from hydra.plugins.plugin import Plugin
from hydra.plugins.sweeper import Sweeper
from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import override

from leyden.config import passwords, signatures
from leyden.config.composition import Composition, origin, to_dict, value_at
from leyden.config.defaults import Defaults, fill_in, read_defaults, with_choices
from leyden.config.instantiate import allowed_packages, declared_packages, is_inside
from leyden.config.locations import CONF, project_root, relative_to_cwd, separate_project_conf
from leyden.config.run_config import RunConfig
from leyden.config.yaml_files import check_aliases, check_encoding, choices, is_base
from leyden.errors import UserError, nearest

VERSION_BASE = {"version_base": "1.3"} if hydra_version.startswith("1.3") else {}
# Packages whose classes may be built below hydra.*, beside those that a project declares.
BUILDABLE_PACKAGES = ("hydra.experimental.callbacks", "optuna.distributions", "optuna.pruners", "optuna.samplers")
PLUGINS: dict[str, type[Plugin]] = {"hydra.launcher": Launcher, "hydra.sweeper": Sweeper}
HANDLERS = ("logging.StreamHandler", "logging.NullHandler")  # a handler that writes a file could empty any file
FORMATTERS = ("logging.Formatter", "colorlog.ColoredFormatter")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
# Shell commands and database URLs are accepted only from the command line and from the config files of GROUPS.
SHELL = ("additional_parameters", "extra", "python", "setup", "srun_args")  # options of SLURM launchers and submitit
TRUSTED_KEYS = (*(("launcher", key) for key in SHELL), ("sweeper", "storage"))
GROUPS = ("hydra/launcher", "hydra/sweeper", "accelerator")


class CheckedRepository(ConfigRepository):
    """Hydra's reader of config files, which also fills in defaults, hides bases, and refuses unsafe files."""

    def __init__(self, config_search_path: ConfigSearchPath, defaults: list[Defaults]) -> None:
        super().__init__(config_search_path)
        self._defaults = defaults

    @override
    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        return [name for name in super().get_group_options(group_name, results_filter) if not is_base(name)]

    @override
    def load_config(self, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source and source.scheme() == "file":
            path = Path(source.path, source._normalize_file_name(config_path))
            check_encoding(path)
            check_aliases(path)
        result = super().load_config(config_path)
        if source and result and source.scheme() == "file":
            fill_in(result, config_path, Path(source.path), self._defaults)
        return result

    @override
    def _extract_defaults_list(self, config_path: str, cfg: Container) -> ListConfig:
        return with_choices(config_path, super()._extract_defaults_list(config_path, cfg), self._defaults)


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's config loader, except that it refuses values that Hydra must not act on."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = CheckedRepository(config_search_path, read_defaults())
        self._overrides: list[Override] = []

    @override
    def _parse_overrides_and_create_caching_repo(self, *args: Any, **kwargs: Any) -> Any:
        self._overrides, repository = super()._parse_overrides_and_create_caching_repo(*args, **kwargs)
        return self._overrides, repository

    @override
    def _compose_config_from_defaults_list(self, *args: Any, **kwargs: Any) -> DictConfig:
        """Compose the files.

        An override without + may then set an argument of a `_target_`, even if the files leave the argument out.
        """
        config = super()._compose_config_from_defaults_list(*args, **kwargs)
        tree = to_dict(config)
        for item in self._overrides:
            parent, _, name = item.key_or_group.rpartition(".")
            node = value_at(tree, parent) if parent and item.type == OverrideType.CHANGE else None
            if isinstance(node, dict) and name not in node and signatures.takes(node.get("_target_"), name):
                item.type = OverrideType.FORCE_ADD
        return config

    @override
    def load_configuration(
        self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any
    ) -> DictConfig:
        """Compose a config, or the config of a sweep's job.

        Raises:
            UserError: one line for each forbidden key or value under `hydra.*`.
        """
        _check_search_path(overrides)
        config = super().load_configuration(config_name, overrides, *args, **kwargs)
        untrusted_values = self._untrusted_values(config, config_name, overrides, kwargs)
        if problems := [*_chosen_bases(config.hydra), *_problems(config.hydra), *untrusted_values]:
            origins = sources(config.hydra)
            raise UserError("\n".join(f"{text}{origin(origins, path)}" for path, text in problems))
        return config

    def _untrusted_values(
        self, config: DictConfig, name: str | None, overrides: list[str], arguments: dict[str, Any]
    ) -> Iterator[tuple[str, str]]:
        """Find the TRUSTED_KEYS that an untrusted file sets: composed without untrusted files, their values differ.

        Searching the text of the files is not enough: YAML has anchors, and a defaults list may name any file.
        """
        values = {key: value for key in TRUSTED_KEYS if (value := _unresolved_value(config, key))}
        if not values:
            return
        choices = {group: config.hydra.runtime.choices.get(group) for group in GROUPS}
        trusted_overrides = [item for item in overrides if re.match(r"[+~]*hydra(?!/)", item)]
        trusted_overrides += [
            f"{group}={choice}" for group, choice in choices.items() if choice and ".." not in str(choice)
        ]
        trusted_config = super().load_configuration(name, trusted_overrides, **arguments)
        for key, value in values.items():
            if value != _unresolved_value(trusted_config, key):
                path = ".".join(("hydra", *key))
                places = (
                    f"the command line, {', '.join(f'conf/{group}' for group in GROUPS[:-1])} and conf/{GROUPS[-1]}"
                )
                yield path, f"{path}: shell lines and databases are taken from {places} alone"


def _unresolved_value(config: DictConfig, key: tuple[str, str]) -> Any:
    """Return a value below `hydra` with its ${…} unresolved, None if there is none."""
    node = OmegaConf.to_container(config.hydra[key[0]], resolve=False)
    return node.get(key[1]) if isinstance(node, dict) else None


def sources(hydra: DictConfig) -> Composition:
    """Return the sources of a composed config: its overrides, its choices, and the search path of its files."""
    by_target = to_dict(hydra.overrides)  # with their ${…}
    overrides = [*by_target["hydra"], *by_target["task"]]
    choices = {k: v for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/")}
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    return Composition({}, cast(RunConfig, {}), overrides, choices, folders, defaults=read_defaults())


def find_plugins() -> None:
    """Let Hydra import installed plugins, but none from the working directory or the project's folder."""
    search_path = list(sys.path)
    sys.path[:] = [entry for entry in search_path if Path(entry).resolve() not in (Path.cwd(), project_root())]
    try:
        Plugins.instance()
    finally:
        sys.path[:] = search_path


@contextlib.contextmanager
def hydra_initialized() -> Iterator[Hydra]:
    """Initialize Hydra on the project's conf/ and leyden's, with a `CheckedLoader`, while in this block.

    The project's conf/ is searched first, so its files replace those of leyden with the same name.

    Raises:
        UserError: when the project has a train.yaml, which would replace the config that leyden starts from.
    """
    find_plugins()
    passwords.register_resolver()
    with initialize_config_dir(str(CONF), job_name="train", **VERSION_BASE):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        search_path = hydra.config_loader.get_search_path()
        if folder := separate_project_conf():
            if (file := folder / "train.yaml").is_file():
                hint = "an experiment holds values of your own: conf/experiment/NAME.yaml"
                raise UserError(f"{relative_to_cwd(file)}: every config starts from leyden's train.yaml alone; {hint}")
            search_path.prepend("project", f"file://{folder}", SearchPathQuery("main", None))
        hydra.config_loader = CheckedLoader(search_path)
        yield hydra


def _check_search_path(overrides: list[str]) -> None:
    """Refuse a package on Hydra's search path that is not declared: Hydra imports it to look for its files."""
    search_paths = [item for item in overrides if item.lstrip("+").startswith("hydra.searchpath=")]
    for item in OverridesParser.create().parse_overrides(search_paths):
        entries = item.value()
        for entry in entries if isinstance(entries, list) else [entries]:
            scheme, _, package = str(entry).rpartition("://")
            if scheme not in ("", "file") and not is_inside(package.replace("/", "."), allowed_packages()):
                reason = (
                    "config files are read from folders, file://…, and from packages that conf/project.yaml declares"
                )
                raise UserError(f"hydra.searchpath={entry}: {reason}")


def _chosen_bases(hydra: DictConfig) -> Iterator[tuple[str, str]]:
    """Find the bases that a command line or a file has chosen."""
    for key, choice in hydra.runtime.choices.items():
        group = key.partition("@")[0]
        for name in choice if isinstance(choice, ListConfig) else [choice]:
            if name and is_base(Path(name).name):
                hint = nearest(name.lstrip("_"), [file.stem for file in choices(CONF / group)])
                yield group, f"{group}={name}: this is a base of other files, not a choice{hint}"


def _problems(hydra: DictConfig) -> Iterator[tuple[str, str]]:
    for name in hydra.job.env_set or ():
        path = f"hydra.job.env_set.{name}"
        yield path, f"{path}: a config sets no environment variables: write {name}=… before the command"
    for name in ("callbacks", "launcher", "sweeper"):
        yield from _target_problems(f"hydra.{name}", _resolved_value(hydra, name))
    for name in ("job_logging", "hydra_logging"):
        yield from _logging_problems(f"hydra.{name}", _resolved_value(hydra, name))
    folder = _resolved_value(hydra, "output_subdir")
    if folder is not None and Path(str(folder)).name != folder:
        path = "hydra.output_subdir"
        yield path, f"{path}={folder}: should be the name of one folder in the run, or null"


def _target_problems(path: str, node: Any) -> Iterator[tuple[str, str]]:
    """Find the objects that Hydra must not build; launchers and sweepers must be plugins that Hydra has discovered."""
    if isinstance(node, str) and "${" in node:
        reason = "this depends on the job and cannot be checked before the sweep starts: write the value"
        yield path, f"{path}={node}: {reason}"
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _target_problems(f"{path}.{index}", item)
    if not isinstance(node, dict):
        return
    target, kind, key_path = node.get("_target_"), PLUGINS.get(path), f"{path}._target_"
    if kind and target not in (plugins := [f"{c.__module__}.{c.__name__}" for c in Plugins.instance().discover(kind)]):
        yield key_path, f"{key_path}={target}: there is no such plugin{nearest(str(target), plugins)}"
    elif target is not None and not kind and not _is_buildable(target):
        packages = ", ".join((*BUILDABLE_PACKAGES, *declared_packages()))
        hint = "if it is yours, add its package to targets in conf/project.yaml"
        yield key_path, f"{key_path}={target}: only classes of {packages} are built below hydra; {hint}"
    for key, value in node.items():
        yield from _target_problems(f"{path}.{key}", value)


def _is_buildable(target: Any) -> bool:
    """Return whether a target is defined in an allowed package, and not only imported there under a new name."""
    packages = (*BUILDABLE_PACKAGES, *declared_packages())
    definition = signatures.locate(target) if isinstance(target, str) and is_inside(target, packages) else None
    return definition is not None and is_inside(definition.module.name, packages)


def _logging_problems(path: str, node: Any) -> Iterator[tuple[str, str]]:
    """Find values that Python's logging would call, import or open: https://docs.python.org/3/library/logging.config.html."""
    for key in ("()", "class"):
        if isinstance(node, dict) and node.get(key, HANDLERS[0]) not in (*HANDLERS, *FORMATTERS):
            classes = ", ".join((*HANDLERS, *FORMATTERS))
            yield (
                f"{path}.{key}",
                f"{path}.{key}={node[key]}: should be one of {classes}; a run keeps its own log.txt",
            )
            return
    if isinstance(node, str) and (node.startswith(("ext://", "cfg://")) or "${" in node) and node not in STREAMS:
        yield path, f"{path}={node}: should be {' or '.join(STREAMS)}, or plain text"
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _logging_problems(f"{path}.{key}", value)


def _resolved_value(parent: DictConfig | ListConfig, key: Any) -> Any:
    """Return a value as plain data, with its `${…}` resolved as far as that is possible before the run."""
    try:
        value = parent[key]
    except OmegaConfBaseException:
        return str(parent._get_node(key))
    if isinstance(value, DictConfig):
        return {str(name): _resolved_value(value, name) for name in value}
    if isinstance(value, ListConfig):
        return [_resolved_value(value, index) for index in range(len(value))]
    return value
