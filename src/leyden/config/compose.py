"""Compose a config from a command line by Hydra, and check it; neither torch nor lightning is imported."""

import re
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leyden.config import passwords, signatures
from leyden.config.check import check
from leyden.config.composition import Composition, drop_unused, leaves, nearest_key, paths, to_dict, value_at
from leyden.config.defaults import read_defaults
from leyden.config.foreign import name_metrics
from leyden.config.hydra_node import hydra_initialized, sources
from leyden.config.locations import CONF, project_conf, relative_to_cwd
from leyden.config.overrides import check_overrides, syntax_problem, with_absolute_paths
from leyden.config.run_config import RunConfig
from leyden.config.yaml_files import check_aliases, choices, with_bases
from leyden.errors import UserError, nearest

SWEEP_KEYS = ("seeds", "folds", "pairs")  # top-level keys that hydra.sweeper reads
JOB = "job: "  # prefix of the exception note that lists the overrides of a sweep's job
RESOLVING = re.compile(r"^\w+ raised while resolving interpolation: ")  # prefix of errors raised in a resolver
FOLDS = 1000  # more than the folds of any run, so that all derived seeds differ


def compose(overrides: list[str]) -> Composition:
    """Compose `conf/train.yaml` with Hydra overrides, the project's conf/ included, and check it.

    Raises:
        UserError: one line for each mistake.
    """
    overrides = with_absolute_paths(overrides)
    check_overrides(overrides)
    cfg = _compose(overrides)
    return build_composition(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"]), cfg.hydra, overrides)


def build_composition(cfg: DictConfig, hydra_cfg: DictConfig, overrides: list[str]) -> Composition:
    """Turn Hydra's config into a checked composition with a name and resolved interpolations."""
    origins = sources(hydra_cfg)
    run_dir = next((o.split("=", 1)[1] for o in hydra_cfg.overrides.hydra if o.startswith("hydra.run.dir=")), None)
    raw = to_dict(cfg)
    _check_sweep(raw, hydra_cfg)
    if isinstance(raw.get("logger"), dict):
        raw["logger"] = _without_unused_loggers(raw["logger"], origins.search_path)
    name_metrics(raw)
    group_choices = origins.choices
    parts = [group_choices.get(group) for group in ("data", "model")]
    default_name = "_".join(map(str, parts if raw.get("data") else parts[1:]))
    raw["name"] = raw.get("name") or group_choices.get("experiment") or default_name
    launcher = to_dict(hydra_cfg.launcher, resolve=True)
    result = Composition(
        raw, resolve(raw), overrides, group_choices, origins.search_path, run_dir, launcher, origins.defaults
    )
    check(result)
    drop_unused(result)
    return result


def _without_unused_loggers(raw: dict[str, Any], search_path: list[Path]) -> dict[str, Any]:
    """Return the loggers of a config without the settings of a logger that is not chosen, as an experiment may have."""
    return {
        name: node
        for name, node in raw.items()
        if not isinstance(node, dict)
        or "_target_" in node
        or not any((folder / "logger" / f"{name}.yaml").is_file() for folder in search_path)
    }


def _check_sweep(raw: dict[str, Any], hydra_cfg: DictConfig) -> None:
    """Remove the keys of a sweep from a run's config, or refuse them if there is no -m."""
    if "sweep" in raw:
        file = f"conf/sweep/{hydra_cfg.runtime.choices.get('sweep')}.yaml"
        raise UserError(f'{file}: a search space begins with the line "# @package hydra.sweeper"')
    requests = [f"{key}={value}" for key in SWEEP_KEYS if (value := raw.pop(key, None)) is not None]
    requests += [f"hydra.sweeper.{key}" for key in ("params", "pairs") if hydra_cfg.sweeper.get(key)]
    requests += [item for item in hydra_cfg.overrides.hydra if item.lstrip("+").startswith("hydra.sweeper.")]
    if requests and hydra_cfg.get("mode") != RunMode.MULTIRUN:
        raise UserError(f"{requests[0]} makes a sweep: add -m")


def launcher(overrides: list[str]) -> dict[str, Any]:
    """Return `hydra.launcher` as composed with overrides."""
    return to_dict(_compose(overrides).hydra.launcher, resolve=True)


def _compose(overrides: list[str]) -> DictConfig:
    for item in overrides:
        _check_header(item)
    try:
        with hydra_initialized():
            return hydra_compose("train", overrides, return_hydra_config=True)
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(explain(error, overrides)) from error


def _check_header(item: str) -> None:
    """Refuse an experiment whose file lacks the header that applies it to the whole config."""
    group, _, name = item.lstrip("+").partition("=")
    for folder in (CONF, project_conf()) if group == "experiment" else ():
        file = folder / "experiment" / f"{name}.yaml" if folder else Path()
        if file.is_file() and b"@package _global_" not in file.read_bytes():
            raise UserError(f'{file}:1: an experiment begins with the line "# @package _global_"')


def explain(error: Exception, overrides: list[str]) -> str:
    """Explain a Hydra error in one line; if a sweep's job raised it, a note on it lists the job's overrides."""
    text = str(error)
    for note in getattr(error, "__notes__", ()):
        overrides = note.removeprefix(JOB).split("\n") if note.startswith(JOB) else overrides
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}:{mark.line + 1}: not valid YAML: {error.problem}"
    if isinstance(error, RecursionError):
        return "a file of conf/ includes itself through its defaults list; a file of the same name replaces leyden's"
    if match := re.search(r"Could not find '([^']+)'", text):
        group, _, choice = match[1].rpartition("/")
        options = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)*?)(?=Config search path|\Z)", text)
        names = options[1].split() if options else []
        is_default = not any(item.startswith(f"{group}=") for item in overrides)
        files = [d.file for d in read_defaults() if is_default and choice in str(d.values.get(group))]
        place = f" (in {relative_to_cwd(files[-1])})" if files else ""
        return f"{group}={choice}: there is no {group} of that name{nearest(choice, names)}{place}"
    match = re.search(r"Could not (?:override|delete)[^']*'([^']+)'", text)
    if match and any(item.lstrip("+~").startswith(match[1]) for item in overrides):  # else a file is wrong
        return _explain_key(match[1], overrides)
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: several values make a sweep: add -m, or write a list as [a,b]"
    if isinstance(error, OverrideParseException):
        return syntax_problem(error.override or "", text)
    return RESOLVING.sub("", " ".join(text.split("\nSee ")[0].split()))


def _explain_key(key: str, overrides: list[str]) -> str:
    """Explain an override whose key is not in the config, and suggest what was probably meant."""
    path = key.partition("@")[0]
    value = next((o.split("=", 1)[1] for o in overrides if o.split("=", 1)[0] == key and "=" in o), "")
    other_overrides = [
        o for o in overrides if "=" in o and not o.startswith(("~", key, path + "=")) and not has_several_values(o)
    ]
    tree = to_dict(_compose(other_overrides))
    hydra_node = tree.pop("hydra")
    tree = {"hydra": hydra_node} if path.startswith("hydra.") else tree
    parent, _, name = path.rpartition(".")
    node = value_at(tree, parent)
    signature = signatures.signature(node["_target_"]) if isinstance(node, dict) and "_target_" in node else None
    hint = f"; if {node['_target_']} takes {name}, write +{key}={value}" if signature and signature.open else ""
    return f"{key}: there is no such key{nearest_key(path, tree, signature)}{hint}"


def has_several_values(override: str) -> bool:
    """Return whether an override lists several values, as for a sweep."""
    return OverridesParser.create().parse_override(override).is_sweep_override()


def resolve(raw: dict[str, Any]) -> RunConfig:
    """Return the config as plain data with every `${…}` filled in.

    Each fold gets its own seed: fold 2 of seed 1 uses 1002. Folds that shared one seed would differ less from each
    other than from the folds of another seed, and no test over folds would notice.
    """
    passwords.register_resolver()
    try:
        tree = OmegaConf.create(raw)
        seed, fold = (OmegaConf.select(tree, key) for key in ("seed", "data.fold"))
        if isinstance(seed, int) and isinstance(fold, int) and fold >= 0:
            tree.seed = FOLDS * seed + fold
        return cast(RunConfig, to_dict(tree, resolve=True))  # `check` verifies the types
    except OmegaConfBaseException as error:
        raise UserError(_explain_interpolation(raw, error)) from error


def _explain_interpolation(raw: dict[str, Any], error: OmegaConfBaseException) -> str:
    """Explain which `${…}` reads a key that does not exist or has no value."""
    key = str(error.full_key)
    if match := re.search(r"Interpolation key '([^']+)' not found", str(error)):
        readers = (path for path in paths(raw) if isinstance(value := value_at(raw, path), str) and match[1] in value)
        key = next(readers, key)
        hint = _data_sets_with(match[1]) or nearest_key(match[1], raw, None)
        return f"{key}={value_at(raw, key)}: there is no {match[1]}{hint}"
    if re.search(r"missing (?:node|mandatory value)", str(error), re.IGNORECASE):
        keys = [path for path, value in leaves(raw) if value == "???"]
        verb = "has" if len(keys) == 1 else "have"
        return f"{', '.join(keys)} {verb} no value: write {' '.join(f'{key}=…' for key in keys)}"
    return f"{key}={value_at(raw, key)}: {RESOLVING.sub('', str(error).splitlines()[0])}"


def _data_sets_with(key: str) -> str:
    """Name the data sets whose files have a key `data.…` that the chosen one lacks."""
    group, _, name = key.partition(".")
    names = [
        choice.stem
        for choice in (choices(CONF / group) if group == "data" else ())
        for file in with_bases(choice.relative_to(CONF), [CONF])
        if re.search(rf"^{name}:", file.read_text(), re.MULTILINE)
    ]
    return f"; data sets that have it: {', '.join(dict.fromkeys(names))}" if names else ""


def override(raw: dict[str, Any], overrides: list[str]) -> Composition:
    """Apply overrides (values and group choices) to a config that was composed before, and check it."""
    overrides = with_absolute_paths(overrides)
    launcher_overrides = [
        item for item in overrides if item.lstrip("+").startswith(("hydra/launcher=", "hydra.launcher."))
    ]
    parsed_overrides = check_overrides([item for item in overrides if item not in launcher_overrides])
    cfg: DictConfig = OmegaConf.create(raw)
    for item in parsed_overrides:
        _apply(cfg, item)
    new_raw = to_dict(cfg)
    name_metrics(new_raw)
    result = Composition(new_raw, resolve(new_raw), overrides)
    launcher_overrides += [
        item for item in overrides if item.startswith("accelerator=")
    ]  # accelerator=slurm also chooses a launcher
    result.launcher = launcher(launcher_overrides) if launcher_overrides else {}
    check(result)
    drop_unused(result)
    return result


def _apply(cfg: DictConfig, item: Override) -> None:
    key = item.get_key_element().lstrip("+~")
    if (CONF / key).is_dir() and not item.is_delete():
        _replace_choice(cfg, key, str(item.input_line))
        return
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    is_new = isinstance(node, DictConfig) and name not in node and not item.is_add() and not item.is_force_add()
    if not isinstance(node, DictConfig) or (
        is_new and (item.is_delete() or not signatures.takes(node.get("_target_"), name))
    ):
        raise UserError(f"{key}: there is no such key{nearest_key(key, to_dict(cfg), None)}")
    if item.is_delete():
        del node[name]
    else:
        OmegaConf.update(cfg, key, item.value(), merge=False, force_add=True)


def _replace_choice(cfg: DictConfig, group: str, item: str) -> None:
    """Replace a config group with another choice.

    The files of `accelerator` set keys all over the config, so every key that one of them sets is reset first.
    """
    if group == "experiment":
        raise UserError(f"{item}: a run keeps its experiment; leyden train {item} makes another run")
    new_cfg = _compose([item])
    if group != "accelerator":
        OmegaConf.update(cfg, group, to_dict(new_cfg)[group], merge=False, force_add=True)
        return
    folders = [folder / group for folder in (CONF, project_conf()) if folder]
    files = [file for folder in folders for file in folder.glob("*.yaml")]
    for file in files:
        check_aliases(file)
    contents = [yaml.safe_load(file.read_text()) or {} for file in files]
    for path in {path for content in contents for path in paths(content) if path not in ("defaults", "trainer")}:
        parent, _, key = path.rpartition(".")
        (OmegaConf.select(cfg, parent) if parent else cfg).pop(key, None)
        if (value := OmegaConf.select(new_cfg, path)) is not None:
            OmegaConf.update(cfg, path, value, merge=False, force_add=True)
