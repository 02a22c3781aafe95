"""From a command line to a checked, plain config, and from a config to objects.

Composition is Hydra's; the check needs neither torch nor lightning. `instantiate` is the only way from a
config to objects, and builds nothing but classes of the allowed packages.
"""

import difflib
import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import hydra
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from leyden import signatures
from leyden.errors import UserError

_INSTALLED = Path(__file__).parent / "conf"  # in a wheel; in a checkout conf/ stands beside src/
CONF = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "conf"
VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}

# Packages whose classes a config may name. A user's project adds its own in conf/project.yaml.
ALLOWED = ("leyden", "torch.nn", "torch.optim", "torchmetrics", "lightning", "lightning_utilities", "optuna")
FORBIDDEN = ("lightning.pytorch.cli",)  # parses command lines of its own, which name any class
# What train.py passes to targets, so that a config need not and may not.
SUPPLIED = {
    "trainer": {"callbacks", "default_root_dir", "enable_checkpointing", "enable_progress_bar", "logger", "plugins"},
    "checkpoint": {"config", "run_dir", "stop"},
    "logger.*": {"config", "run_dir", "sweep"},
}


class Expectation(BaseModel):
    """What an experiment claims: a metric that a finished run must reach."""

    model_config = ConfigDict(extra="forbid")
    metric: str
    at_least: float | None = None
    at_most: float | None = None


# Top-level keys that leyden itself reads; the groups hold nodes with a _target_.
SETTINGS: dict[str, Any] = {
    "name": Annotated[str, Field(pattern=r"^[\w.+=,@-]+$")],
    "seed": NonNegativeInt,
    "threads": PositiveInt | None,
    "test": bool,
    "expect": Expectation | list[Expectation] | None,
}
NODES = ("checkpoint", "data", "model", "optimizer", "schedule", "trainer")
COLLECTIONS = ("callbacks", "logger")


@dataclass
class Composition:
    """A composed config, as written (`raw`, with `${…}`) and resolved, and where its parts came from."""

    raw: dict
    config: dict
    overrides: list[str] = field(default_factory=list)
    choices: dict[str, Any] = field(default_factory=dict)
    search_path: list[Path] = field(default_factory=list)
    run_dir: str | None = None  # where the user asked Hydra to put the run


def compose(overrides: list[str]) -> Composition:
    """Compose `conf/train.yaml` with Hydra overrides, the working directory's conf/ included, and check it.

    Raises:
        UserError: with one line for each thing that is wrong.
    """
    cfg = _compose(overrides)
    return checked(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"]), cfg.hydra, overrides)


def checked(cfg: DictConfig, hydra_cfg: DictConfig, overrides: list[str]) -> Composition:
    """Name, resolve and check what Hydra composed."""
    sources = [s.path for s in hydra_cfg.runtime.config_sources if s.schema == "file"]
    choices = {k: v for k, v in hydra_cfg.runtime.choices.items() if not k.startswith("hydra/")}
    run_dir = next((o.split("=", 1)[1] for o in hydra_cfg.overrides.hydra if o.startswith("hydra.run.dir=")), None)
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    raw["name"] = raw.get("name") or choices.get("experiment") or f"{choices.get('data')}_{choices.get('model')}"
    result = Composition(raw, {}, overrides, choices, [Path(s) for s in reversed(sources)], run_dir)
    result.config = resolve(raw)
    check(result)
    return result


def project_conf() -> Path | None:
    """The user's own conf/ in the working directory, if there is one."""
    path = Path.cwd() / "conf"
    return path if path.is_dir() else None


def search_path_override() -> list[str]:
    """The Hydra override that adds the user's conf/ to the search path."""
    path = project_conf()
    return [f"hydra.searchpath=[file://{path}]"] if path and path.resolve() != CONF.resolve() else []


def _compose(overrides: list[str]) -> DictConfig:
    try:
        with initialize_config_dir(str(CONF), **VERSION_BASE):
            return hydra_compose("train", [*search_path_override(), *overrides], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(_explain(error, overrides)) from error


def _explain(error: Exception, overrides: list[str]) -> str:
    """Say in one line what Hydra means."""
    text = str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}:{mark.line + 1}: not valid YAML: {error.problem}"
    if found := re.search(r"Could not find '([^']+)'", text):
        group, _, choice = found[1].rpartition("/")
        options = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)*?)(?=Config search path|\Z)", text)
        names = options[1].split() if options else []
        return f"{group}={choice}: there is no {group} of that name{_nearest(choice, names)}"
    if found := re.search(r"Could not (?:override|delete)[^']*'([^']+)'", text):
        return _explain_key(found[1], overrides)
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{found[1]}: several values make a sweep: add -m, or write a list as [a,b]"
    written = f"{getattr(error, 'override', None) or ''}: " if hasattr(error, "override") else ""
    return written + " ".join(text.split("\nSee ")[0].split())


def _explain_key(key: str, overrides: list[str]) -> str:
    """Say what was probably meant by an override whose key is not in the config."""
    plain = key.partition("@")[0]
    value = next((o.split("=", 1)[1] for o in overrides if o.split("=", 1)[0] == key and "=" in o), "")
    kept = [o for o in overrides if not o.startswith((key, plain + "=")) and _exists(o)]
    tree = OmegaConf.to_container(_compose(kept), resolve=False)
    assert isinstance(tree, dict)
    tree.pop("hydra")
    parent, _, name = plain.rpartition(".")
    node = _at(tree, parent)
    taken = signatures.signature(node["_target_"]) if isinstance(node, dict) and "_target_" in node else None
    if taken and name in taken.parameters:
        return f"{key} is not set in the config; {node['_target_']} takes it: write +{key}={value}"
    return f"{key}: there is no such key{_nearest_key(plain, tree, taken)}"


def _exists(override: str) -> bool:
    return "=" in override and not override.startswith("~")


def _at(tree: Any, path: str) -> Any:
    for part in filter(None, path.split(".")):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _paths(tree: Any, prefix: str = "") -> Iterator[str]:
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if key != "_target_":
            yield f"{prefix}{key}"
            yield from _paths(value, f"{prefix}{key}.")


def _nearest(name: str, options: Iterable[str]) -> str:
    options = sorted(set(options))
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are: {', '.join(options)}" if options else ""


def _nearest_key(path: str, tree: dict, taken: signatures.Signature | None) -> str:
    """Name the nearest key: beside it, else anywhere in the config."""
    parent, _, name = path.rpartition(".")
    node = _at(tree, parent) if parent else tree
    beside = {*(node if isinstance(node, dict) else ()), *(taken.parameters if taken else ())} - {"_target_", name}
    if close := difflib.get_close_matches(name, sorted(beside), n=1, cutoff=0.7):
        return f"; did you mean {parent + '.' if parent else ''}{close[0]}?"
    everywhere = {p.rpartition(".")[2]: p for p in reversed(list(_paths(tree))) if p != path}
    if close := difflib.get_close_matches(name, sorted(everywhere), n=1, cutoff=0.7):
        return f"; did you mean {everywhere[close[0]]}?"
    return f"; {parent or 'the config'} takes: {', '.join(sorted(beside))}" if beside else ""


def resolve(raw: dict) -> dict:
    """Return the config as plain data with every `${…}` filled in."""
    try:
        config = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{error.full_key}={_at(raw, str(error.full_key))}: {reason}") from error
    assert isinstance(config, dict)
    return config


def override(raw: dict, overrides: list[str]) -> Composition:
    """Apply overrides, values and group choices, to a config that was composed before, and check it."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise UserError(_explain(error, overrides)) from error
    cfg = OmegaConf.create(raw)
    for item in parsed:
        _apply(cfg, item)
    changed = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(changed, dict)
    result = Composition(changed, resolve(changed), overrides)
    check(result)
    return result


def _apply(cfg: DictConfig, item: Override) -> None:
    key = item.get_key_element().lstrip("+~")
    if (CONF / key).is_dir() and not item.is_delete():
        _take_choice(cfg, key, str(item.input_line))
        return
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not isinstance(node, DictConfig) or (name not in node and not item.is_add() and not item.is_force_add()):
        tree = OmegaConf.to_container(cfg, resolve=False)
        assert isinstance(tree, dict)
        raise UserError(f"{key}: there is no such key{_nearest_key(key, tree, None)}")
    if item.is_delete():
        del node[name]
    else:
        OmegaConf.update(cfg, key, item.value(), merge=False, force_add=True)


def _take_choice(cfg: DictConfig, group: str, written: str) -> None:
    """Take a group's choice from a fresh composition; an accelerator's is all that any accelerator sets of `trainer`."""
    if group == "experiment":
        raise UserError(f"{written}: a run's experiment is what it was; leyden train {written} makes another run")
    fresh = _compose([written])
    if group != "accelerator":
        OmegaConf.update(cfg, group, OmegaConf.to_container(fresh[group], resolve=False), merge=False, force_add=True)
        return
    folders = [folder / group for folder in (CONF, project_conf()) if folder]
    keys = {key for folder in folders for file in folder.glob("*.yaml") for key in yaml.safe_load(file.read_text()) or {}}
    for key in keys - {"defaults"}:
        cfg.trainer.pop(key, None)
        if key in fresh.trainer:
            OmegaConf.update(cfg, f"trainer.{key}", fresh.trainer[key], merge=False, force_add=True)


# ---- check ---------------------------------------------------------------------------------------------------


def check(composition: Composition) -> None:
    """Refuse a config that names, misses or mistypes anything, before torch is imported.

    Raises:
        UserError: one line for each problem, with the file or override that it came from.
    """
    found = list(_problems(composition))
    written = [(path, text) for path, text in found if not _is_interpolated(composition.raw, path)]
    if found:  # a wrong value that ${…} carries elsewhere is told once, where it is written
        raise UserError("\n".join(f"{text}{origin(composition, path)}" for path, text in written or found))


def _is_interpolated(raw: Any, path: str) -> bool:
    for part in path.split("."):
        raw = raw.get(part) if isinstance(raw, dict) else None
        if isinstance(raw, str) and "${" in raw:
            return True
    return False


def _problems(composition: Composition) -> Iterator[tuple[str, str]]:
    config = composition.config
    read = _keys_read(composition.raw)
    for key, value in config.items():
        if key in SETTINGS:
            yield from _setting_problems(key, value)
        elif key in COLLECTIONS:
            for name, node in (value or {}).items():
                yield from _node_problems(f"{key}.{name}", node, config)
        elif key in NODES:
            yield from _node_problems(key, value, config)
        elif key not in read:
            names = [*SETTINGS, *NODES, *COLLECTIONS]
            yield key, f"{key}: leyden knows no such key, and no ${{{key}}} reads it{_nearest(key, names)}"
    for key in ("optimizer", "schedule"):
        set_by_user = [o for o in composition.overrides if re.match(rf"\+*{key}[.=]", o)]
        if set_by_user and key not in read:
            yield "", f"{set_by_user[0]} would change nothing: this model does not read ${{{key}}}"
    for key in ("checkpoint", "data", "model", "trainer"):
        if not config.get(key):
            yield key, f"{key} is empty: choose one, for instance {key}={_first_choice(key)}"


def _keys_read(raw: dict) -> set[str]:
    """The top-level keys that an interpolation reads, directly or through optimizer and schedule."""
    read: set[str] = set()
    waiting = [key for key in raw if key not in ("optimizer", "schedule")]
    while waiting:
        found = set(re.findall(r"\$\{(\w+)", str(raw[waiting.pop()]))) - read
        read |= found
        waiting += [key for key in found if key in ("optimizer", "schedule") and key in raw]
    return read


def _first_choice(group: str) -> str:
    return next((p.stem for p in sorted((CONF / group).glob("*.yaml"))), "…")


def _setting_problems(key: str, value: Any) -> Iterator[tuple[str, str]]:
    try:
        TypeAdapter(SETTINGS[key]).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("Expectation", "list[Expectation]"))
        yield key, f"{key}{'.' + where if where else ''}={first['input']}: {first['msg'].removeprefix('Input ')}"


def _node_problems(path: str, node: Any, config: dict) -> Iterator[tuple[str, str]]:
    if node is None or node == {}:
        return
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        yield path, f"{path} has no _target_: it must name the class to build"
        return
    yield from _target_problems(path, node, config)


def _target_problems(path: str, node: dict, config: dict) -> Iterator[tuple[str, str]]:
    """Check one node with a _target_, and the ones inside it."""
    target = node["_target_"]
    if problem := _refusal(target):
        yield f"{path}._target_", f"{path}._target_={target}: {problem}"
        return
    taken = signatures.signature(target)
    supplied = SUPPLIED.get(path) or SUPPLIED.get(re.sub(r"\.\w+$", ".*", path), set())
    for key, value in node.items():
        here = f"{path}.{key}"
        if key in ("_target_", "_partial_"):
            continue
        if value == "???":
            yield here, f"{here} has no value: write {here}=…"
        elif key in supplied:
            yield here, f"{here}: leyden sets this itself"
        elif taken and key not in taken.parameters and not taken.open:
            yield here, f"{here}: {target} takes no {key}{_nearest_key(here, config, taken)}"
        elif taken and key in taken.parameters and (reason := signatures.complaint(taken.parameters[key], value)):
            yield here, f"{here}={_short(value)}: {reason}"
        yield from _inner_problems(here, value, config)
    if taken and not node.get("_partial_"):
        for name, parameter in taken.parameters.items():
            if parameter.required and name not in node and name not in supplied:
                yield path, f"{path}: {target} needs {name}: write {path}.{name}=…"


def _inner_problems(path: str, value: Any, config: dict) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and "_target_" in value:
        yield from _target_problems(path, value, config)
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _inner_problems(f"{path}.{key}", inner, config)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _refusal(target: str) -> str | None:
    """Say why a target may not be built, as far as its name and source tell."""
    packages = allowed_packages()
    if not _inside(target, packages):
        return (
            f"only classes of {', '.join(packages)} are built from a config; "
            f"if it is yours, add its package to targets in conf/project.yaml"
        )
    if _inside(target, FORBIDDEN):
        return "this class is not built from a config"
    module, _, name = target.rpartition(".")
    if not signatures.module_exists(target.split(".")[0]):
        return f"there is no package {target.split('.')[0]} here: install it, or run from your project's folder"
    if signatures.locate(target) is None and signatures.module_exists(module):
        names = signatures.public_names(module)
        if name not in names and difflib.get_close_matches(name, names, n=1, cutoff=0.7):
            return f"{module} has no {name}{_nearest(name, names)}"
    return None


def _inside(target: str, packages: Iterable[str]) -> bool:
    return any(target == package or target.startswith(package + ".") for package in packages)


def allowed_packages() -> tuple[str, ...]:
    """The packages whose classes may be built: leyden's list and what ./conf/project.yaml declares."""
    conf = project_conf()
    declared = conf / "project.yaml" if conf else None
    if declared is None or not declared.is_file():
        return ALLOWED
    try:
        targets = TypeAdapter(list[str]).validate_python((yaml.safe_load(declared.read_text()) or {})["targets"])
    except (yaml.YAMLError, KeyError, ValidationError, TypeError) as error:
        raise UserError(f"{declared}: should read `targets: [my_package]`") from error
    return (*ALLOWED, *targets)


def origin(composition: Composition, path: str) -> str:
    """Name the override or the file and line that set a config path, as ` (in …)`; empty when unknown."""
    for item in reversed(composition.overrides):
        key = item.split("=", 1)[0].lstrip("+~")
        if path == key or path.startswith(key + ".") and key in path.split("=")[0] and not _is_group(key):
            return f" (from {item})"
    for file, package in _files(composition):
        line = _line_of(file, path.removeprefix(package + ".") if package else path)
        if line is not None and (not package or path == package or path.startswith(package + ".")):
            return f" (in {_relative(file)}:{line})"
    return ""


def _is_group(key: str) -> bool:
    return (CONF / key).is_dir()


def _relative(file: Path) -> str:
    inside = file.is_relative_to(Path.cwd())
    return str(file.relative_to(Path.cwd())) if inside else str(file)


def _files(composition: Composition) -> Iterator[tuple[Path, str]]:
    """Yield the composed files, the latest to apply first, with the package that each fills."""
    names = [("experiment", composition.choices.get("experiment")), *composition.choices.items(), ("", "train")]
    for group, choice in names:
        for one in choice if isinstance(choice, list) else [choice]:
            relative = Path(group.partition("@")[0]) / f"{one}.yaml"
            file = next((d / relative for d in composition.search_path if (d / relative).is_file()), None)
            if one and file:
                header = re.search(r"^#\s*@package\s+(\S+)", file.read_text(), re.MULTILINE)
                package = header[1] if header else group.rpartition("@")[2].replace("/", ".")
                yield file, "" if package == "_global_" else package


def _line_of(file: Path, path: str) -> int | None:
    """Find the line of a dotted key in a YAML file."""
    node = yaml.compose(file.read_text(), Loader=yaml.SafeLoader)
    line = None
    for part in path.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        match = next(((k, v) for k, v in pairs if k.value == part), None)
        if match is None:
            return None
        line, node = match[0].start_mark.line + 1, match[1]
    return line


# ---- objects -------------------------------------------------------------------------------------------------


def instantiate(node: Any, path: str, **supplied: Any) -> Any:
    """Build what a config node describes: nested nodes first, `_partial_: true` as a functools.partial.

    Raises:
        UserError: when the target is not allowed, cannot be found, or does not take the arguments.
    """
    if isinstance(node, list):
        return [instantiate(item, f"{path}.{i}") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    arguments = {k: instantiate(v, f"{path}.{k}") for k, v in node.items() if k not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return arguments
    target = _import(node["_target_"], path)
    build = functools.partial(target, **arguments, **supplied)
    if node.get("_partial_"):
        return build
    try:
        inspect.signature(target).bind(**arguments, **supplied)
    except TypeError as error:
        raise UserError(f"{path}: {node['_target_']}: {error}") from error
    return build()


def _import(target: str, path: str) -> Any:
    """Import an allowed class; the object's own module must be allowed too, so no re-exported `os.system`."""
    if problem := _refusal(target):
        raise UserError(f"{path}._target_={target}: {problem}")
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{path}._target_={target} cannot be imported: {error}") from error
    declared = allowed_packages()[len(ALLOWED) :]
    is_builtin_class = inspect.isclass(found) and _inside(found.__module__, ("torch", *ALLOWED))
    if not is_builtin_class and not (callable(found) and _inside(target, declared)):
        raise UserError(f"{path}._target_={target}: not a class of an allowed package")
    return found


def add_project_to_path() -> None:
    """Let configs name modules of the working directory, as `python -m` would."""
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109  (sys.path holds strings)
        sys.path.insert(0, os.getcwd())  # noqa: PTH109


