"""What a config may say under `hydra.*`: Hydra builds objects, opens files and sets variables by it, as it reads it.

Hydra trusts what it composes; leyden does not, since an experiment may be somebody else's. `CheckedLoader` composes
for leyden, and nothing that it composes reaches Hydra, in a sweep's jobs either, before it was checked here.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import __version__ as hydra_version
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.plugin import Plugin
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leyden.config import passwords, signatures
from leyden.config.check import Composition, origin
from leyden.config.groups import choices, is_base
from leyden.config.instantiate import allowed_packages, declared_packages, is_inside
from leyden.config.locations import CONF, installed_only
from leyden.errors import UserError, nearest

VERSION_BASE = {"version_base": "1.3"} if hydra_version.startswith("1.3") else {}
# packages whose classes may be built below hydra.*, beside those that a project declares
BUILT = ("hydra.experimental.callbacks", "optuna.distributions", "optuna.pruners", "optuna.samplers")
PLUGINS: dict[str, type[Plugin]] = {"hydra.launcher": Launcher, "hydra.sweeper": Sweeper}
HANDLERS = ("logging.StreamHandler", "logging.NullHandler")  # one that writes a file could empty any
FORMATTERS = ("logging.Formatter", "colorlog.ColoredFormatter")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
# What may be a command, and where a database is made: taken from the command line and the choices of GROUPS alone.
SHELL = ("additional_parameters", "extra", "python", "setup", "srun_args")  # of SLURM launchers, submitit's too
OWN = (*(("launcher", key) for key in SHELL), ("sweeper", "storage"))
GROUPS = ("hydra/launcher", "hydra/sweeper", "accelerator")


class FilesWithoutBases(FileConfigSource):
    """A folder of config files that lists choices alone, in help, completion and errors; bases can be read from it."""

    def list(self, *args: Any, **kwargs: Any) -> list[str]:
        """List the files or folders of a group."""
        return [name for name in super().list(*args, **kwargs) if not is_base(name)]


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's loader of configs, which refuses what Hydra is not to get."""

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *args: Any, **kwargs: Any
    ) -> DictConfig:
        """Compose a config; a sweep's jobs are composed by this, too.

        Raises:
            UserError: one line for each thing under `hydra.*` that may not stand there.
        """
        _check_search_path(overrides)
        config = super().load_configuration(config_name, overrides, *args, **kwargs)
        if found := [
            *_chosen_bases(config.hydra),
            *_problems(config.hydra),
            *self._brought(config, config_name, overrides, kwargs),
        ]:
            written = sources(config.hydra)
            raise UserError("\n".join(f"{text}{origin(written, path)}" for path, text in found))
        return config

    def _brought(
        self, config: DictConfig, name: str | None, overrides: list[str], arguments: dict[str, Any]
    ) -> Iterator[tuple[str, str]]:
        """Find what is in OWN and another file has brought: it is not there when those files are left out.

        The files' text does not tell: YAML has anchors and merge keys, and a defaults list may name any file.
        """
        given = {place: value for place in OWN if (value := _unresolved(config, place))}
        if not given:
            return
        choices = {group: config.hydra.runtime.choices.get(group) for group in GROUPS}
        trusted = [item for item in overrides if re.match(r"[+~]*hydra(?!/)", item)]
        trusted += [f"{group}={choice}" for group, choice in choices.items() if choice and ".." not in str(choice)]
        own = super().load_configuration(name, trusted, **arguments)
        for place, value in given.items():
            if value != _unresolved(own, place):
                path = ".".join(("hydra", *place))
                where = f"the command line, {', '.join(f'conf/{group}' for group in GROUPS[:-1])} and conf/{GROUPS[-1]}"
                yield path, f"{path}: shell lines and databases are taken from {where} alone"


def _unresolved(config: DictConfig, place: tuple[str, str]) -> Any:
    """Return what stands at a place below `hydra`, with its ${…}; None where there is nothing."""
    kind, key = place
    node = OmegaConf.to_container(config.hydra[kind], resolve=False)
    return node.get(key) if isinstance(node, dict) else None


def sources(hydra: DictConfig) -> Composition:
    """Say what Hydra composed: overrides, choices, and the folders that files came from, the first to be read last."""
    written = OmegaConf.to_container(hydra.overrides, resolve=False)  # with their ${…}
    assert isinstance(written, dict)
    overrides = [*written["hydra"], *written["task"]]
    choices = {k: v for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/")}
    folders = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    return Composition({}, {}, overrides, choices, folders[::-1])


def find_plugins() -> None:
    """Have Hydra import its plugins: those that are installed, not those of the working directory."""
    with installed_only():
        Plugins.instance()
    SourcesRegistry.instance().types["file"] = FilesWithoutBases


@contextlib.contextmanager
def hydra_at_work() -> Iterator[Hydra]:
    """Have Hydra at work on leyden's conf/."""
    find_plugins()
    passwords.guard()
    with initialize_config_dir(str(CONF), job_name="train", **VERSION_BASE):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.config_loader = CheckedLoader(hydra.config_loader.get_search_path())
        yield hydra


def _check_search_path(overrides: list[str]) -> None:
    """Refuse a package on the search path that is not declared: looking for its files imports it."""
    chosen = [item for item in overrides if item.lstrip("+").startswith("hydra.searchpath=")]
    for item in OverridesParser.create().parse_overrides(chosen):
        entries = item.value()
        for entry in entries if isinstance(entries, list) else [entries]:
            scheme, _, package = str(entry).rpartition("://")
            if scheme not in ("", "file") and not is_inside(package.replace("/", "."), allowed_packages()):
                raise UserError(
                    f"hydra.searchpath={entry}: config files are read from folders, file://…, and from packages "
                    "that conf/project.yaml declares"
                )


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
        yield from _target_problems(f"hydra.{name}", _resolved(hydra, name))
    for name in ("job_logging", "hydra_logging"):
        yield from _logging_problems(f"hydra.{name}", _resolved(hydra, name))
    folder = _resolved(hydra, "output_subdir")
    if folder is not None and Path(str(folder)).name != folder:
        path = "hydra.output_subdir"
        yield path, f"{path}={folder}: should be the name of one folder in the run, or null"


def _target_problems(path: str, node: Any) -> Iterator[tuple[str, str]]:
    """Find every object that Hydra would build and may not; a plugin is known by Hydra, which found it installed."""
    if isinstance(node, str) and "${" in node:
        yield (
            path,
            f"{path}={node}: this depends on the job and cannot be checked before the sweep starts: write the value",
        )
    if isinstance(node, list):
        for place, item in enumerate(node):
            yield from _target_problems(f"{path}.{place}", item)
    if not isinstance(node, dict):
        return
    target, kind, here = node.get("_target_"), PLUGINS.get(path), f"{path}._target_"
    if kind and target not in (known := [f"{c.__module__}.{c.__name__}" for c in Plugins.instance().discover(kind)]):
        yield here, f"{here}={target}: there is no such plugin{nearest(str(target), known)}"
    elif target is not None and not kind and not _is_buildable(target):
        packages = ", ".join((*BUILT, *declared_packages()))
        hint = "if it is yours, add its package to targets in conf/project.yaml"
        yield here, f"{here}={target}: only classes of {packages} are built below hydra; {hint}"
    for key, value in node.items():
        yield from _target_problems(f"{path}.{key}", value)


def _is_buildable(target: Any) -> bool:
    """Whether the source says that a target is defined in an allowed package: a name there may stand for any other."""
    packages = (*BUILT, *declared_packages())
    definition = signatures.locate(target) if isinstance(target, str) and is_inside(target, packages) else None
    return definition is not None and is_inside(definition.module.name, packages)


def _logging_problems(path: str, node: Any) -> Iterator[tuple[str, str]]:
    """Find what Python's logging would call, import or open: https://docs.python.org/3/library/logging.config.html."""
    for key in ("()", "class"):
        if isinstance(node, dict) and node.get(key, HANDLERS[0]) not in (*HANDLERS, *FORMATTERS):
            kinds = ", ".join((*HANDLERS, *FORMATTERS))
            yield f"{path}.{key}", f"{path}.{key}={node[key]}: should be one of {kinds}; a run keeps its own log.txt"
            return
    if isinstance(node, str) and (node.startswith(("ext://", "cfg://")) or "${" in node) and node not in STREAMS:
        yield path, f"{path}={node}: should be {' or '.join(STREAMS)}, or plain text"
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _logging_problems(f"{path}.{key}", value)


def _resolved(parent: DictConfig | ListConfig, key: Any) -> Any:
    """Return a value as plain data, `${…}` filled in wherever that can be done already."""
    try:
        value = parent[key]
    except OmegaConfBaseException:
        return str(parent._get_node(key))
    if isinstance(value, DictConfig):
        return {str(name): _resolved(value, name) for name in value}
    if isinstance(value, ListConfig):
        return [_resolved(value, place) for place in range(len(value))]
    return value
