"""Is a composed config right? Every key, type and value, before torch is imported, with the place that set it."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from leyden.config import passwords, run_paths, signatures
from leyden.config.groups import choices, with_bases
from leyden.config.instantiate import refusal
from leyden.config.locations import CONF, seen
from leyden.errors import UserError, nearest

# What train.py passes to targets, so that a config need not and may not.
SUPPLIED = {
    "trainer": {
        *("callbacks", "default_root_dir", "enable_checkpointing", "enable_progress_bar", "logger", "plugins"),
        "model_registry",  # would send checkpoints to a service
    },
    "checkpoint": {"config", "run_dir", "stop"},
    "logger.*": {"config", "run_dir", "sweep"},
}


class Expectation(BaseModel):
    """What an experiment claims: a metric that a finished run must reach."""

    model_config = ConfigDict(extra="forbid")
    metric: str
    at_least: float | None = None
    at_most: float | None = None


def expectations(config: dict) -> list[dict]:
    """What the experiment claims, as a list."""
    expect = config.get("expect") or []
    return expect if isinstance(expect, list) else [expect]


Options = TypeVar("Options", bound=BaseModel)

NAME = re.compile(r"\w[\w.+=,@-]{0,99}")  # of a folder: never hidden, an option of a command, or a step upwards


def _run_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(
            "a run's name becomes a folder: it must begin with a letter, digit or _ and have at most 100 of these and "
            ". + = , @ -"
        )
    if name == "last":
        raise ValueError("means the newest run in every command: take another name")
    return name


# Top-level keys that leyden itself reads; the groups hold nodes with a _target_.
SETTINGS: dict[str, Any] = {
    "name": Annotated[str, AfterValidator(_run_name)],
    "seed": NonNegativeInt,
    "threads": PositiveInt | None,
    "test": bool,
    "precision": str | int,
    "accumulate": PositiveInt,
    "compile": bool,
    "timeout": PositiveFloat,
    "profile": bool,
    "strict_code": bool,
    "expect": Expectation | list[Expectation] | None,
}
NODES = ("checkpoint", "data", "feature", "model", "optimizer", "schedule", "trainer")
PARTS = ("feature", "optimizer", "schedule")  # nodes that only a model reads, as ${…}
COLLECTIONS = ("callbacks", "logger")


def validated(kind: type[Options], node: dict, path: str) -> Options:
    """Check the options that Hydra composed for one of its plugins.

    Raises:
        UserError: for what is not an option or not a value of one; a field's description says what one looks like.
    """
    node = {key: value for key, value in node.items() if key != "_target_"}
    try:
        return kind.model_validate(node)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if key not in kind.model_fields:
            reason = f"there is no such option{nearest(key, kind.model_fields)}"
        else:
            reason = kind.model_fields[key].description or first["msg"].removeprefix("Input ").removeprefix(
                "Value error, "
            )
        raise UserError(f"{path}.{key}={_short(node.get(key))}: {reason}") from error


@dataclass
class Composition:
    """A composed config, as written (`raw`, with `${…}`) and resolved, and where its parts came from."""

    raw: dict
    config: dict
    overrides: list[str] = field(default_factory=list)
    choices: dict[str, Any] = field(default_factory=dict)
    search_path: list[Path] = field(default_factory=list)
    run_dir: str | None = None  # where the user asked Hydra to put the run
    launcher: dict = field(default_factory=dict)  # hydra.launcher: how the run is to be started


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
            yield key, f"{key}: leyden knows no such key, and no ${{{key}}} reads it{nearest(key, names)}"
    if composition.run_dir and not composition.run_dir.isprintable():
        yield "", f"hydra.run.dir={composition.run_dir!r}: should be one line of printable characters"
    yield from passwords.problems(config)
    yield from _trainer_problems(config)
    yield from _sharing_problems(config)
    yield from _fold_problems(config)
    for key in PARTS:
        set_by_user = [o for o in composition.overrides if re.match(rf"\+*{key}[.=]", o)]
        if set_by_user and config.get(key) and key not in read:
            yield "", f"{set_by_user[0]} would change nothing: this model does not read ${{{key}}}"
    for key in ("checkpoint", "data", "model", "trainer"):
        if not config.get(key):
            yield key, f"{key} is empty: choose one, for instance {key}={_first_choice(key)}"


def _trainer_problems(config: dict) -> Iterator[tuple[str, str]]:
    trainer = config.get("trainer") or {}
    if trainer.get("overfit_batches") and str((config.get("data") or {}).get("_target_")).startswith("leyden."):
        text = "trainer.overfit_batches: every epoch draws other batches; write data.limit=… instead"
        yield "trainer.overfit_batches", text
    if trainer.get("accumulate_grad_batches") not in (None, 1):
        value = trainer["accumulate_grad_batches"]
        text = (
            f"trainer.accumulate_grad_batches={value}: write accumulate={value}, which cuts each batch in {value} parts"
        )
        yield "trainer.accumulate_grad_batches", text
    epochs = trainer.get("max_epochs")
    if isinstance(epochs, int) and (epochs < -1 or epochs == 0):
        yield "trainer.max_epochs", f"trainer.max_epochs={epochs}: should be 1 or more, or -1 for no end"
    if epochs in (None, -1) and trainer.get("max_steps", -1) == -1 and not trainer.get("max_time"):
        yield (
            "trainer.max_epochs",
            "trainer has no end: set trainer.max_epochs, +trainer.max_steps or +trainer.max_time",
        )


def _sharing_problems(config: dict) -> Iterator[tuple[str, str]]:
    """Hold the batches of leyden's own data against the ranks that share them, as far as the config tells."""
    data, trainer, parts = config.get("data") or {}, config.get("trainer") or {}, config.get("accumulate", 1)
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    devices = len(devices) if isinstance(devices, list) else devices
    known = all(isinstance(count, int) and count > 0 for count in (devices, nodes, parts))
    if not known or not str(data.get("_target_")).startswith("leyden."):
        return
    ranks = devices * nodes
    for key in ("batch_size", "eval_batch_size", "eval_streams"):
        size = data.get(key)
        if isinstance(size, int) and size > 0 and size % ranks:
            near = " or ".join(str(n) for n in (size // ranks * ranks, -(-size // ranks) * ranks) if n)
            yield f"data.{key}", f"data.{key}={size} does not divide by the {ranks} ranks; the nearest is {near}"
    share = data["batch_size"] / ranks if isinstance(data.get("batch_size"), int) else parts
    if parts > max(share, 1):  # a batch that is too small for the ranks has been told
        text = f"accumulate={parts} is more than the {share:g} samples that a rank has of data.batch_size"
        yield "accumulate", f"{text}={data['batch_size']}"


def _fold_problems(config: dict) -> Iterator[tuple[str, str]]:
    """Hold data.fold against data.folds, as leyden's own data does once it is built."""
    data = config.get("data") or {}
    folds, fold = data.get("folds"), data.get("fold")
    typed = all(isinstance(n, int | None) for n in (folds, fold)) and (folds is None or folds > 1)
    if typed and (folds, fold) != (None, None) and str(data.get("_target_")).startswith("leyden."):
        from leyden.data.split import Fold  # and numpy

        try:
            Fold.chosen(folds, fold)
        except UserError as error:
            yield "data.folds" if fold is None else "data.fold", str(error)


def _keys_read(raw: dict) -> set[str]:
    """The top-level keys that an interpolation reads, directly or through `PARTS`."""
    read: set[str] = set()
    waiting = [key for key in raw if key not in PARTS]
    while waiting:
        found = set(re.findall(r"\$\{(\w+)", str(raw[waiting.pop()]))) - read
        read |= found
        waiting += [key for key in found if key in PARTS and key in raw]
    return read


def _first_choice(group: str) -> str:
    return next((file.stem for file in choices(CONF / group)), "…")


def _setting_problems(key: str, value: Any) -> Iterator[tuple[str, str]]:
    try:
        TypeAdapter(SETTINGS[key]).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("Expectation", "list[Expectation]"))
        reason = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        yield key, f"{key}{'.' + where if where else ''}={_short(first['input'])}: {reason}"


def _node_problems(path: str, node: Any, config: dict) -> Iterator[tuple[str, str]]:
    if node is None or node == {}:
        return
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        yield path, f"{path} has no _target_: it must name the class to build"
        return
    yield from _target_problems(path, node, config)
    yield from run_paths.problems(path, node)


def _target_problems(path: str, node: dict, config: dict) -> Iterator[tuple[str, str]]:
    """Check one node with a _target_, and the ones inside it."""
    target = node["_target_"]
    if problem := refusal(target):
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
            yield here, f"{here}: {target} takes no {key}{nearest_key(here, config, taken)}"
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
    text = str(value) if str(value).isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def origin(composition: Composition, path: str) -> str:
    """Name the override or the file and line that set a config path, as ` (in …)`; empty when unknown."""
    for item in reversed(composition.overrides):
        key = item.split("=", 1)[0].lstrip("+~")
        if path == key or (path.startswith(key + ".") and key in path.split("=")[0] and not _is_group(key)):
            return f" (from {item})" if not _has_password(composition, path) else ""
    for file, package in _files(composition):
        line = _line_of(file, path.removeprefix(package + ".") if package else path)
        if line is not None and (not package or path == package or path.startswith(package + ".")):
            return f" (in {seen(file)}:{line})"
    return ""


def _has_password(composition: Composition, path: str) -> bool:
    return any(path == place for place, _ in passwords.problems(composition.config))


def _is_group(key: str) -> bool:
    return (CONF / key).is_dir()


def _files(composition: Composition) -> Iterator[tuple[Path, str]]:
    """Yield the composed files, the latest to apply first, with the package that each fills."""
    names = [("experiment", composition.choices.get("experiment")), *composition.choices.items(), ("", "train")]
    for group, choice in names:
        for one in choice if isinstance(choice, list) else [choice]:
            relative = Path(group.partition("@")[0]) / f"{one}.yaml"
            for file in with_bases(relative, composition.search_path) if one else ():
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


def at(tree: Any, path: str) -> Any:
    """Return what stands at a dotted path, or None."""
    for part in filter(None, path.split(".")):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def paths(tree: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every key."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if key != "_target_":
            yield f"{prefix}{key}"
            yield from paths(value, f"{prefix}{key}.")


def nearest_key(path: str, tree: dict, taken: signatures.Signature | None) -> str:
    """Name the nearest key: beside it, else anywhere in the config."""
    parent, _, name = path.rpartition(".")
    node = at(tree, parent) if parent else tree
    beside = {*(node if isinstance(node, dict) else ()), *(taken.parameters if taken else ())} - {"_target_", name}
    if close := difflib.get_close_matches(name, sorted(beside), n=1, cutoff=0.7):
        return f"; did you mean {parent + '.' if parent else ''}{close[0]}?"
    everywhere = {p.rpartition(".")[2]: p for p in reversed(list(paths(tree))) if p != path}
    if close := difflib.get_close_matches(name, sorted(everywhere), n=1, cutoff=0.7):
        return f"; did you mean {everywhere[close[0]]}?"
    return f"; {parent or 'the config'} takes: {', '.join(sorted(beside))}" if beside else ""
