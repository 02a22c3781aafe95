"""From a command line to a checked, plain config. Composition is Hydra's; neither torch nor lightning is loaded."""

import re
from pathlib import Path

import yaml
from hydra import compose as hydra_compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leyden.config import passwords, signatures
from leyden.config.check import Composition, at, check, nearest_key, paths
from leyden.config.groups import choices, with_bases
from leyden.config.hydra_check import hydra_at_work, sources
from leyden.config.locations import CONF, project_conf
from leyden.errors import UserError, nearest

SWEEPING = ("seeds", "folds")  # words at the top of the config that hydra.sweeper reads
JOB = "job: "  # begins a note on an error with the overrides of the sweep's job that it is about
RESOLVING = re.compile(r"^\w+ raised while resolving interpolation: ")  # before what a resolver says
FOLDS = 1000  # more than anyone has


def compose(overrides: list[str]) -> Composition:
    """Compose `conf/train.yaml` with Hydra overrides, the working directory's conf/ included, and check it.

    Raises:
        UserError: with one line for each thing that is wrong.
    """
    cfg = _compose(overrides)
    return checked(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"]), cfg.hydra, overrides)


def checked(cfg: DictConfig, hydra_cfg: DictConfig, overrides: list[str]) -> Composition:
    """Name, resolve and check what Hydra composed."""
    found = sources(hydra_cfg)
    run_dir = next((o.split("=", 1)[1] for o in hydra_cfg.overrides.hydra if o.startswith("hydra.run.dir=")), None)
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    _check_sweep(raw, hydra_cfg)
    chosen = found.choices
    raw["name"] = raw.get("name") or chosen.get("experiment") or f"{chosen.get('data')}_{chosen.get('model')}"
    result = Composition(raw, {}, overrides, chosen, found.search_path, run_dir)
    result.config, result.launcher = resolve(raw), _plain(hydra_cfg.launcher)
    check(result)
    return result


def _check_sweep(raw: dict, hydra_cfg: DictConfig) -> None:
    """Drop from a run's config what concerns a sweep; refuse it where there is none."""
    if "sweep" in raw:
        file = f"conf/sweep/{hydra_cfg.runtime.choices.get('sweep')}.yaml"
        raise UserError(f'{file}: a search space begins with the line "# @package hydra.sweeper"')
    asked = [f"{key}={value}" for key in SWEEPING if (value := raw.pop(key, None)) is not None]
    if hydra_cfg.sweeper.get("params"):
        asked.append("hydra.sweeper.params")
    asked += [item for item in hydra_cfg.overrides.hydra if item.lstrip("+").startswith("hydra.sweeper.")]
    if asked and hydra_cfg.get("mode") != RunMode.MULTIRUN:
        raise UserError(f"{asked[0]} makes a sweep: add -m")


def launcher(overrides: list[str]) -> dict:
    """Return `hydra.launcher` as composed with overrides."""
    return _plain(_compose(overrides).hydra.launcher)


def _plain(node: DictConfig) -> dict:
    result = OmegaConf.to_container(node, resolve=True)
    assert isinstance(result, dict)
    return result


def search_path_override() -> list[str]:
    """The Hydra override that adds the user's conf/ to the search path."""
    path = project_conf()
    return [f"hydra.searchpath=['file://{path}']"] if path and path.resolve() != CONF.resolve() else []


def _compose(overrides: list[str]) -> DictConfig:
    for item in overrides:
        _check_header(item)
    try:
        with hydra_at_work():
            return hydra_compose("train", [*search_path_override(), *overrides], return_hydra_config=True)
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(explain(error, overrides)) from error


def _check_header(item: str) -> None:
    """Refuse an experiment whose file would not reach the whole config."""
    group, _, name = item.lstrip("+").partition("=")
    for folder in (CONF, project_conf()) if group == "experiment" else ():
        file = folder / "experiment" / f"{name}.yaml" if folder else Path()
        if file.is_file() and b"@package _global_" not in file.read_bytes():
            raise UserError(f'{file}:1: an experiment begins with the line "# @package _global_"')


def explain(error: Exception, overrides: list[str]) -> str:
    """Say in one line what Hydra means; of a sweep's job, a note says which."""
    text = str(error)
    for note in getattr(error, "__notes__", ()):
        overrides = note.removeprefix(JOB).split("\n") if note.startswith(JOB) else overrides
    if isinstance(error, UnicodeDecodeError):
        return f"a YAML file is not UTF-8 text: {text}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}:{mark.line + 1}: not valid YAML: {error.problem}"
    if found := re.search(r"Could not find '([^']+)'", text):
        group, _, choice = found[1].rpartition("/")
        options = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)*?)(?=Config search path|\Z)", text)
        names = options[1].split() if options else []
        return f"{group}={choice}: there is no {group} of that name{nearest(choice, names)}"
    found = re.search(r"Could not (?:override|delete)[^']*'([^']+)'", text)
    if found and any(override.lstrip("+~").startswith(found[1]) for override in overrides):  # else a file's own mistake
        return _explain_key(found[1], overrides)
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{found[1]}: several values make a sweep: add -m, or write a list as [a,b]"
    written = f"{getattr(error, 'override', None) or ''}: " if hasattr(error, "override") else ""
    return written + RESOLVING.sub("", " ".join(text.split("\nSee ")[0].split()))


def _explain_key(key: str, overrides: list[str]) -> str:
    """Say what was probably meant by an override whose key is not in the config."""
    plain = key.partition("@")[0]
    value = next((o.split("=", 1)[1] for o in overrides if o.split("=", 1)[0] == key and "=" in o), "")
    kept = [o for o in overrides if not o.startswith((key, plain + "=")) and _exists(o) and not varies(o)]
    tree = OmegaConf.to_container(_compose(kept), resolve=False)
    assert isinstance(tree, dict)
    hydra_own = tree.pop("hydra")
    tree = {"hydra": hydra_own} if plain.startswith("hydra.") else tree
    parent, _, name = plain.rpartition(".")
    node = at(tree, parent)
    taken = signatures.signature(node["_target_"]) if isinstance(node, dict) and "_target_" in node else None
    if taken and name in taken.parameters:
        return f"{key} is not set in the config; {node['_target_']} takes it: write +{key}={value}"
    return f"{key}: there is no such key{nearest_key(plain, tree, taken)}"


def _exists(override: str) -> bool:
    return "=" in override and not override.startswith("~")


def varies(override: str) -> bool:
    """Whether an override has several values."""
    return OverridesParser.create().parse_override(override).is_sweep_override()


def resolve(raw: dict) -> dict:
    """Return the config as plain data with every `${…}` filled in.

    Each fold has draws of its own, fold 2 with seed 1 those of seed 1002: folds that share the luck of one seed would
    differ less from each other than from those of the next seed, and no test over folds could see it.
    """
    passwords.guard()
    try:
        tree = OmegaConf.create(raw)
        seed, fold = (OmegaConf.select(tree, key) for key in ("seed", "data.fold"))
        if isinstance(seed, int) and isinstance(fold, int) and fold >= 0:
            tree.seed = FOLDS * seed + fold
        config = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_unresolved(raw, error)) from error
    assert isinstance(config, dict)
    return config


def _unresolved(raw: dict, error: OmegaConfBaseException) -> str:
    """Say which `${…}` leads nowhere, or to a value that is still to be given."""
    key = str(error.full_key)
    if nowhere := re.search(r"Interpolation key '([^']+)' not found", str(error)):
        readers = (path for path in paths(raw) if isinstance(value := at(raw, path), str) and nowhere[1] in value)
        key = next(readers, key)
        hint = _who_has(nowhere[1]) or nearest_key(nowhere[1], raw, None)
        return f"{key}={at(raw, key)}: there is no {nowhere[1]}{hint}"
    if missing := re.search(r"missing (?:node|mandatory value)\w*:? '?([\w.]+)", str(error), re.IGNORECASE):
        return f"{missing[1]} has no value: write {missing[1]}=…"
    return f"{key}={at(raw, key)}: {RESOLVING.sub('', str(error).splitlines()[0])}"


def _who_has(key: str) -> str:
    """Name the data sets that state a fact `data.…`, since this one does not."""
    group, _, fact = key.partition(".")
    names = [
        choice.stem
        for choice in (choices(CONF / group) if group == "data" else ())
        for file in with_bases(choice.relative_to(CONF), [CONF])
        if re.search(rf"^{fact}:", file.read_text(), re.MULTILINE)
    ]
    return f"; the data that have it: {', '.join(dict.fromkeys(names))}" if names else ""


def override(raw: dict, overrides: list[str]) -> Composition:
    """Apply overrides, values and group choices, to a config that was composed before, and check it."""
    placing = [item for item in overrides if item.lstrip("+").startswith(("hydra/launcher=", "hydra.launcher."))]
    try:
        parsed = OverridesParser.create().parse_overrides([item for item in overrides if item not in placing])
    except HydraException as error:
        raise UserError(explain(error, overrides)) from error
    cfg = OmegaConf.create(raw)
    for item in parsed:
        _apply(cfg, item)
    changed = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(changed, dict)
    result = Composition(changed, resolve(changed), overrides)
    placing += [item for item in overrides if item.startswith("accelerator=")]  # accelerator=slurm chooses a launcher
    result.launcher = launcher(placing) if placing else {}
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
        raise UserError(f"{key}: there is no such key{nearest_key(key, tree, None)}")
    if item.is_delete():
        del node[name]
    else:
        OmegaConf.update(cfg, key, item.value(), merge=False, force_add=True)


def _take_choice(cfg: DictConfig, group: str, written: str) -> None:
    """Take a group's choice from a fresh composition; for an accelerator, all that any sets of `trainer`."""
    if group == "experiment":
        raise UserError(f"{written}: a run's experiment is what it was; leyden train {written} makes another run")
    fresh = _compose([written])
    if group != "accelerator":
        chosen = OmegaConf.to_container(fresh, resolve=False)
        assert isinstance(chosen, dict)
        OmegaConf.update(cfg, group, chosen[group], merge=False, force_add=True)
        return
    folders = [folder / group for folder in (CONF, project_conf()) if folder]
    files = [yaml.safe_load(file.read_text()) or {} for folder in folders for file in folder.glob("*.yaml")]
    for path in {path for file in files for path in paths(file) if path not in ("defaults", "trainer")}:
        parent, _, key = path.rpartition(".")
        (OmegaConf.select(cfg, parent) if parent else cfg).pop(key, None)
        if (value := OmegaConf.select(fresh, path)) is not None:
            OmegaConf.update(cfg, path, value, merge=False, force_add=True)
