"""Checks of a composed config: its keys, types and values, before torch is imported."""

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, cast, get_type_hints

from pydantic import AfterValidator, BaseModel, TypeAdapter, ValidationError

from leyden.config import annotations, extras, foreign, output_paths, passwords, signatures
from leyden.config.annotations import bare_message
from leyden.config.composition import (
    PARTS,
    Composition,
    find_referenced_keys,
    leaves,
    nearest_key,
    origin,
    shortened,
)
from leyden.config.defaults import is_read_by_project
from leyden.config.directions import highest_value
from leyden.config.instantiate import refusal
from leyden.config.locations import CONF, in_project_folder
from leyden.config.ranges import range_problem
from leyden.config.run_config import Expectation, Init, RunConfig
from leyden.config.yaml_files import choices
from leyden.errors import UserError, nearest
from leyden.folds import Fold

MAX_INTEGER = 2**63 - 1  # of torch and numpy
DATA = "leyden.data.base.Data"  # the base class of leyden's data, whose batches and folds can be checked here

# Arguments that leyden itself passes to these targets, so a config must not set them.
SUPPLIED_ARGUMENTS = {
    "trainer": {
        *("callbacks", "default_root_dir", "enable_checkpointing", "enable_progress_bar", "logger", "plugins"),
        "model_registry",  # it would upload checkpoints
    },
    "checkpoint": {"config", "run_dir", "stop"},
    "logger.*": {"config", "run_dir", "sweep"},
}
# Arguments that leyden passes if a config does not, so that a logger writes to the run's folder.
DEFAULT_ARGUMENTS = {"logger.*": {"root_dir", "save_dir"}}

Options = TypeVar("Options", bound=BaseModel)

MAX_NAME = 100
NAME = re.compile(rf"\w[\w.+=,@-]{{0,{MAX_NAME - 1}}}")  # excludes hidden folders, `..`, and names like options


def _run_name(name: str) -> str:
    if not NAME.fullmatch(name):
        valid_name = re.sub(r"^\W+|[^\w.+=,@-]+", "_", name).strip("_")[:MAX_NAME]
        hint = f"; write name={valid_name}" if NAME.fullmatch(valid_name) else ""
        raise ValueError(
            f"a run's name becomes a folder: it must begin with a letter, digit or _ and have at most {MAX_NAME} of "
            f"these and . + = , @ -{hint}"
        )
    if name == "last":
        raise ValueError("means the newest run in every command: take another name")
    return name


NODES = ("checkpoint", "data", "feature", "model", "optimizer", "schedule", "trainer")
COLLECTIONS = ("callbacks", "logger")
# The top-level keys that leyden itself reads; the groups above hold nodes with a _target_.
KEY_TYPES = get_type_hints(RunConfig, include_extras=True)
SETTINGS = {key: kind for key, kind in KEY_TYPES.items() if key not in (*NODES, *COLLECTIONS)}
SUBKEYS = {"expect": Expectation, "init": Init}
SETTINGS["name"] = Annotated[str, AfterValidator(_run_name)]


def validate_options(kind: type[Options], node: dict[str, Any], path: str) -> Options:
    """Check the options that Hydra composed for one of its plugins.

    Raises:
        UserError: for an unknown option or a wrong value; the message quotes the option's description.
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
            reason = kind.model_fields[key].description or bare_message(first)
        raise UserError(f"{path}.{key}={shortened(node.get(key))}: {reason}") from error


def check(composition: Composition) -> None:
    """Refuse a config with unknown or missing keys or wrong values, before torch is imported.

    Raises:
        UserError: one line for each problem, with the file or override that it came from.
    """
    with in_project_folder():
        problems = [_locate(composition.raw, path, text) for path, text in _problems(composition)]
    # other keys may refer to a wrong value by ${…}; it is reported only once, for the key that sets it
    reported_paths = {path for path, source, _ in problems if path == source}
    lines = []
    for path, source, text in problems:
        if path == source or source not in reported_paths:
            reported_paths.add(source)
            lines.append(text.replace(f"{path}=", f"{source}=", 1) + origin(composition, source))
    if lines:
        raise UserError("\n".join(lines))


def expectations(config: RunConfig) -> list[Expectation]:
    """Return the claims of an experiment as a list."""
    claims = config.get("expect") or []
    return claims if isinstance(claims, list) else [claims]


def _locate(raw: Any, path: str, text: str) -> tuple[str, str, str]:
    """Return the path of a problem, the path of the key that the user should change, and the text of the problem."""
    source = _source(raw, path)
    if source == path or not text.startswith(f"{path}: "):
        return path, source, text
    reason = text.partition(";")[0]  # a key that reads ${…} is no misspelling
    advice = f"add the argument, or leave the key out: ~{path}"
    return path, path, f"{reason}, which this file sets to ${{{source}}}: {advice}"


def _source(raw: Any, path: str) -> str:
    """Return the path of the key that a value comes from: `optimizer.lr` for a key that reads ${optimizer.lr}."""
    node, parts = raw, path.split(".")
    for depth, part in enumerate(parts, 1):
        node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, str) and (match := re.fullmatch(r"\$\{(\w[\w.]*)\}", node)):
            return _source(raw, ".".join([match[1], *parts[depth:]]))
    return path


def _problems(composition: Composition) -> Iterator[tuple[str, str]]:
    config = cast(dict[str, Any], composition.config)  # not checked yet: a key may be missing or wrong
    if not isinstance(trainer := config.get("trainer") or {}, dict):
        text = f"trainer={trainer}: there is no group trainer: accelerator={trainer} chooses hardware"
        yield "trainer", f"{text}, trainer.max_epochs=… and the like set values"
        return
    referenced_keys = find_referenced_keys(composition.raw)
    for key, value in config.items():
        if key in SETTINGS:
            yield from _setting_problems(key, value)
        elif key in COLLECTIONS:
            for name, node in (value or {}).items():
                yield from _node_problems(f"{key}.{name}", node, config)
        elif key in NODES:
            yield from _node_problems(key, value, config)
        elif key not in {*referenced_keys, *composition.choices} and not is_read_by_project(key, composition.defaults):
            names = [*SETTINGS, *NODES, *COLLECTIONS]
            yield key, f"{key}: leyden knows no such key, and no ${{{key}}} reads it{nearest(key, names)}"
    if composition.run_dir and not composition.run_dir.isprintable():
        yield "", f"hydra.run.dir={composition.run_dir!r}: should be one line of printable characters"
    yield from passwords.find_passwords(config)
    yield from _number_problems(config)
    yield from _expectation_problems(config)
    yield from _trainer_problems(config)
    yield from _sharing_problems(config)
    yield from _fold_problems(config)
    yield from foreign.find_problems(config)
    for key in PARTS:
        user_overrides = [o for o in composition.overrides if re.match(rf"\+*{key}[.=]", o)]
        if user_overrides and config.get(key) and key not in referenced_keys:
            yield "", f"{user_overrides[0]} would change nothing: this model does not read ${{{key}}}"
    for key in ("checkpoint", "data", "model", "trainer"):
        if not config.get(key) and (key != "data" or config.get(key) is None):  # data=none is {}
            choice = next((file.stem for file in choices(CONF / key)), "…")
            yield key, f"{key} is empty: choose one, for instance {key}={choice}"
    for key in sorted(RunConfig.__required_keys__ - config.keys() - {*NODES}):
        yield key, f"{key} is missing: write +{key}=…"


def _number_problems(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Find numbers that are valid for no key: NaN and integers that are too large."""
    for path, value in leaves(config):
        if isinstance(value, float) and math.isnan(value):
            yield path, f"{path}={value}: should be a number"
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            yield path, f"{path}={value}: should be at most {MAX_INTEGER}"


def _expectation_problems(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Find the claims that no run can meet, such as an accuracy of 95."""
    claims = expectations(cast(RunConfig, config))
    for claim in claims if all(isinstance(claim, dict) for claim in claims) else ():
        metric, limit = str(claim.get("metric")), claim.get("at_least")
        highest = highest_value(config, metric)
        if isinstance(limit, int | float) and highest is not None and limit > highest:
            hint = f"; did you mean {limit / 100:g}?" if highest == 1 and limit <= 100 else ""
            yield "expect.at_least", f"expect.at_least={limit}: {metric} is at most {highest:g}{hint}"


def _trainer_problems(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    trainer = config.get("trainer") or {}
    if trainer.get("overfit_batches") and _is_leyden_data(config):
        text = "trainer.overfit_batches: every epoch draws other batches; write data.limit=… instead"
        yield "trainer.overfit_batches", text
    if trainer.get("accumulate_grad_batches") not in (None, 1):
        value = trainer["accumulate_grad_batches"]
        advice = f"write accumulate={value}, which splits each batch into {value} parts"
        yield "trainer.accumulate_grad_batches", f"trainer.accumulate_grad_batches={value}: {advice}"
    if (algorithm := trainer.get("gradient_clip_algorithm")) and not trainer.get("gradient_clip_val"):
        text = f"trainer.gradient_clip_algorithm={algorithm} has no effect without trainer.gradient_clip_val"
        yield "trainer.gradient_clip_algorithm", text
    epochs = trainer.get("max_epochs")
    if isinstance(epochs, int) and (epochs < -1 or epochs == 0):
        yield "trainer.max_epochs", f"trainer.max_epochs={epochs}: should be 1 or more, or -1 for no end"
    if epochs in (None, -1) and trainer.get("max_steps", -1) == -1 and not trainer.get("max_time"):
        text = "trainer has no end: set trainer.max_epochs, trainer.max_steps or trainer.max_time"
        yield "trainer.max_epochs", text


def _sharing_problems(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Check that the ranks can share the batches of leyden's data, if the config says how many ranks there are."""
    data, trainer, num_parts = config.get("data") or {}, config.get("trainer") or {}, config.get("accumulate", 1)
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    devices = len(devices) if isinstance(devices, list) else devices
    are_counts = all(isinstance(count, int) and count > 0 for count in (devices, nodes, num_parts))
    if not are_counts or not _is_leyden_data(config):
        return
    ranks = devices * nodes
    for key in ("batch_size", "eval_batch_size", "eval_streams"):
        size = data.get(key)
        if isinstance(size, int) and size > 0 and size % ranks:
            sizes = " or ".join(str(n) for n in (size // ranks * ranks, -(-size // ranks) * ranks) if n)
            yield f"data.{key}", f"data.{key}={size} does not divide by the {ranks} ranks; the nearest is {sizes}"
    share = data["batch_size"] / ranks if isinstance(data.get("batch_size"), int) else num_parts
    if num_parts > max(share, 1):  # a batch with fewer samples than ranks was reported above
        text = f"accumulate={num_parts} is more than the {share:g} samples that a rank has of data.batch_size"
        yield "accumulate", f"{text}={data['batch_size']}"


def _fold_problems(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Check data.fold against data.folds, as leyden's data does when it is built."""
    data = config.get("data") or {}
    folds, fold = data.get("folds"), data.get("fold")
    are_counts = all(isinstance(n, int | None) for n in (folds, fold)) and (folds is None or folds > 1)
    if are_counts and (folds, fold) != (None, None) and _is_leyden_data(config):
        try:
            Fold.from_config(folds, fold)
        except UserError as error:
            yield "data.folds" if fold is None else "data.fold", str(error)


def _is_leyden_data(config: dict[str, Any]) -> bool:
    """Return whether the data module is one of leyden's, or a user's subclass of one."""
    target = str((config.get("data") or {}).get("_target_"))
    return refusal(target) is None and signatures.is_subclass(target, DATA)


def _setting_problems(key: str, value: Any) -> Iterator[tuple[str, str]]:
    try:
        TypeAdapter(SETTINGS[key]).validate_python(value, strict=True)
    except ValidationError as error:
        errors = error.errors()
        first = next((details for details in errors if details["type"] == "extra_forbidden"), errors[0])
        subkeys = [str(part) for part in first["loc"] if part not in ("Expectation", "list[Expectation]")]
        path, reason = ".".join([key, *subkeys]), bare_message(first)
        if first["type"] == "extra_forbidden":
            yield key, f"{path}: there is no such key{nearest(subkeys[-1], SUBKEYS[key].__annotations__)}"
        else:
            yield key, f"{path}={shortened(first['input'])}: {reason}"


def _node_problems(path: str, node: Any, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if node is None or node == {}:
        return
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        yield path, f"{path} has no _target_: it must name the class to build"
        return
    yield from target_problems(path, node, config)
    yield from output_paths.find_outside(path, node)


def target_problems(path: str, node: dict[str, Any], config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the path and description of each problem in a node with a _target_ and in the nodes inside it."""
    target = node["_target_"]
    if reason := refusal(target):
        yield f"{path}._target_", f"{path}._target_={target}: {reason}"
        return
    yield from extras.find_missing(path, node)
    signature = signatures.signature(target)
    parameters = signature.parameters if signature else {}
    group = re.sub(r"\.\w+$", ".*", path)
    supplied_keys = SUPPLIED_ARGUMENTS.get(path) or SUPPLIED_ARGUMENTS.get(group, set())
    for key, value in node.items():
        key_path = f"{path}.{key}"
        if key in ("_target_", "_partial_"):
            continue
        if value == "???":
            yield key_path, f"{key_path} has no value: write {key_path}=…"
        elif key in supplied_keys:
            yield key_path, f"{key_path}: leyden sets this itself"
        elif signature and key not in parameters and not signature.open:
            yield key_path, f"{key_path}: {target} takes no {key}{nearest_key(key_path, config, signature)}"
        elif key in parameters and (reason := _value_problem(target, key, parameters[key], value)):
            yield key_path, f"{key_path}={shortened(value)}: {reason}"
        yield from _nested_problems(key_path, value, config)
    if not node.get("_partial_"):
        for name, parameter in parameters.items():
            if parameter.required and name not in {*node, *supplied_keys, *DEFAULT_ARGUMENTS.get(group, ())}:
                yield path, f"{path}: {target} needs {name}: write {path}.{name}=…"


def _value_problem(target: str, key: str, parameter: signatures.Parameter, value: Any) -> str | None:
    return annotations.complaint(parameter, value) or range_problem(target, key, value)


def _nested_problems(path: str, value: Any, config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and "_target_" in value:
        yield from target_problems(path, value, config)
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _nested_problems(f"{path}.{key}", item, config)
