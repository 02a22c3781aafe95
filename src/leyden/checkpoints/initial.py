"""Load the initial weights of a model from a file: a checkpoint, a safetensors file, or a plain state dict.

The names in a file are matched with those of the model by their prefixes (`net.`, `module.`), by the layout of
torchvision's and timm's residual networks, and by `init.rename`. Patterns are shell patterns.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from lightning import LightningModule
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from leyden.checkpoints.io import problem, read
from leyden.config.locations import relative_to_cwd
from leyden.config.run_config import Init
from leyden.console import say
from leyden.errors import UserError
from leyden.files.formats import CHECKPOINT
from leyden.models.model import Model
from leyden.models.parameter_groups import similar_names
from leyden.run.initial_weights import is_safetensors

KEYS = ("state_dict", "model_state_dict", "model", "module")  # a file may hold its state dict under one of these
COPIES = "average."  # prefix of weights that a model copies from its others: `Model.on_initial_weights`
COUNTER = ".num_batches_tracked"  # a buffer of batch norms; old files lack it, and training does not need it
# The names of torchvision's and timm's residual networks of basic blocks, and those of `leyden.nets.ResNet18`.
RESNET = {
    "conv1.*": "stem.0.*",
    "bn1.*": "stem.1.*",
    **{f"layer{stage}.*": f"stages.{stage - 1}.*" for stage in (1, 2, 3, 4)},
    "*.bn1.*": "*.norm1.*",
    "*.bn2.*": "*.norm2.*",
    "*.downsample.*": "*.shortcut.*",
    "fc.*": "head.*",
}
NUM_SHOWN = 4  # names that a message lists


class Origin(NamedTuple):
    """What a model took from a file of weights."""

    taken: int  # number of tensors
    new: dict[str, str]  # names of the model that keep their new weights, and why
    left: list[str]  # names in the file that the model did not take


def load(model: LightningModule, init: Init, path: Path) -> Origin:
    """Load the weights of a file into a model.

    A last layer whose shape differs keeps its new weights, and so do the names that `init.skip` fits.

    Raises:
        UserError: if the file holds no weights, a pattern fits nothing, or the model would get only a part of its
            weights.
    """
    model.configure_model()
    weights = {name: value for name, value in _read(path).items() if isinstance(value, Tensor)}
    targets = {name: value for name, value in model.state_dict().items() if not name.startswith(COPIES)}
    try:
        names = _fit_names(weights, targets, init.get("rename") or {})
        taken, new = _choose(model, targets, {names[name]: weights[name] for name in weights}, init.get("skip") or [])
        if not taken and new:
            raise UserError("no weights are left to take, since init.skip fits all names, or the net has one layer")
        left = [name for name in weights if names[name] not in taken]
        tied = {targets[name].data_ptr() for name in taken if not is_lazy(targets[name])}
        missing = [name for name in targets if name not in taken and name not in new]
        if missing_names := [
            name for name in missing if is_lazy(targets[name]) or targets[name].data_ptr() not in tied
        ]:
            raise UserError(_describe_missing(missing_names, left))
    except UserError as error:
        raise UserError(f"init={init['weights']}: {error}") from error
    model.load_state_dict(taken, strict=False)
    if isinstance(model, Model):
        model.on_initial_weights()
    return Origin(len(taken), new, left)


def report(init: Init, origin: Origin) -> None:
    """Print what was taken, and what was not."""
    step = f", step {init['step']}" if "step" in init else ""
    say(f"init: {origin.taken} tensors of {relative_to_cwd(Path(init['weights']))}{step}")
    by_reason: dict[str, list[str]] = {}
    for name, reason in origin.new.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        say(f"init: new weights for {_join_names(names)}: {reason}")
    if origin.left:
        say(f"init: not taken from the file: {_join_names(origin.left)}")


def _read(path: Path) -> dict[str, Any]:
    """Return the state dict in a file.

    Raises:
        UserError: if it cannot be read, or holds anything but plain data and tensors, or no state dict.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            head = file.read(9)
        if is_safetensors(head, path.stat().st_size):
            try:
                return load_file(path)
            except SafetensorError as error:
                raise UserError(f"{path} cannot be read: {error}") from error
        if zipfile.is_zipfile(path) and (reason := problem(path)):  # older files have no checksums
            raise UserError(f"{path}: {reason}")
    content = read(path)
    if isinstance(content, dict):
        if isinstance(facts := content.get("leyden"), dict):
            CHECKPOINT.check(path, facts)
        for state in (*(content.get(key) for key in KEYS), content):
            if isinstance(state, dict) and any(isinstance(value, Tensor) for value in state.values()):
                return state
    kind = f"keys {_join_names([str(key) for key in content])}" if isinstance(content, dict) else type(content).__name__
    raise UserError(f"{path} holds no state dict, but {kind}")


def _fit_names(weights: Iterable[str], targets: Iterable[str], rename: dict[str, str]) -> dict[str, str]:
    """Return, for each name in the file, a name for the model, by the prefixes and layout that match most names.

    Raises:
        UserError: if a pattern of `rename` fits no name in the file.
    """
    names = {name: name for name in weights}
    for pattern, replacement in rename.items():
        change = _renaming(pattern, replacement)
        renamed = {name: change(value) for name, value in names.items()}
        if renamed == names and not any(fnmatchcase(value, pattern) for value in names.values()):
            raise UserError(
                f"init.rename: {pattern} fits no name in the file{similar_names(pattern, [*names.values()])}"
            )
        names = renamed
    layouts: list[list[Callable[[str], str]]] = [[], [_renaming(*item) for item in RESNET.items()]]
    best, most = names, -1
    for old, layout, new in product(_prefixes([*names.values()]), layouts, _prefixes([*targets])):
        candidate = {name: value.removeprefix(old) for name, value in names.items()}
        for change in layout:
            candidate = {name: change(value) for name, value in candidate.items()}
        candidate = {name: new + value for name, value in candidate.items()}
        if (matches := len({*candidate.values()} & {*targets})) > most:
            best, most = candidate, matches
    return best


def _renaming(pattern: str, replacement: str) -> Callable[[str], str]:
    """Return a function that renames the names that a pattern fits.

    Each * of the replacement stands for what the * at the same position in the pattern fits.

    Raises:
        UserError: if the replacement has more of them, or the pattern has wildcards other than *.
    """
    if replacement.count("*") > pattern.count("*") or re.search(r"[?\[\]]", pattern):
        raise UserError(f"init.rename: {pattern} -> {replacement}: use * alone, at most as often as the pattern does")
    expression = re.compile("(.*)".join(map(re.escape, pattern.split("*"))))

    def rename(name: str) -> str:
        match = expression.fullmatch(name)
        if match is None:
            return name
        parts = iter(match.groups())
        return re.sub(r"\*", lambda _: next(parts), replacement)

    return rename


def _prefixes(names: list[str]) -> list[str]:
    """Return the prefixes that more than half of the names share, such as "", "net." and "net.net."."""
    prefixes = [""]
    while True:
        start = prefixes[-1]
        rests = (name.removeprefix(start) for name in names if name.startswith(start))
        parts = Counter(rest.partition(".")[0] for rest in rests if "." in rest)
        part, count = next(iter(parts.most_common(1)), ("", 0))
        if 2 * count <= len(names):
            return prefixes
        prefixes.append(f"{start}{part}.")


def _choose(
    model: nn.Module, targets: dict[str, Tensor], weights: dict[str, Tensor], skip: list[str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights that the model takes, and the names whose weights stay new, each with the reason.

    A name that the file lacks is in neither, since its tensor may have another name as well (tied weights).

    Raises:
        UserError: if a pattern fits no name, or a tensor that is not of a last layer has another shape.
    """
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in targets):
            raise UserError(f"init.skip={pattern} fits no name of the model{similar_names(pattern, [*targets])}")
    heads = _last_layers(model)
    taken: dict[str, Tensor] = {}
    new: dict[str, str] = {}
    for name, target in targets.items():
        value = weights.get(name)
        if any(fnmatchcase(name, pattern) for pattern in skip):
            new[name] = "init.skip fits them"
        elif value is None:
            if name.endswith(COUNTER):
                new[name] = "the file lacks these counters, which training does not need"
        elif is_lazy(target) or value.shape == target.shape:
            taken[name] = value
        else:
            shapes = f"{tuple(value.shape)} in the file, and {tuple(target.shape)} here"
            if name.rpartition(".")[0] not in heads:
                raise UserError(f"{name} is {shapes}: init.skip=[{name}] gives it new weights")
            new[name] = f"a last layer, {shapes}"
    return taken, new


def _last_layers(model: nn.Module) -> set[str]:
    """Return the names of the modules that hold the last parameter of the model, and of each of its nets."""
    names = [name for name, _ in model.named_parameters() if not name.startswith(COPIES)]
    nets = getattr(model, "net", None)
    prefixes = ["", "net.", *(f"net.{net}." for net in (nets if isinstance(nets, nn.ModuleDict) else ()))]
    members = ([name for name in names if name.startswith(prefix)] for prefix in prefixes)
    return {group[-1].rpartition(".")[0] for group in members if group}


def _describe_missing(names: list[str], left: list[str]) -> str:
    """Describe the names of a model that a file has no weights for."""
    unused = f" (not taken from it: {_join_names(left)})" if left else ""
    return (
        f"the file has no weights for {_join_names(names)}{unused}: map the names by init.rename, or give them new "
        f"weights by init.skip=[{names[0]}]"
    )


def _join_names(names: list[str]) -> str:
    """Return the first names of a list as text, with the number of the others."""
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more
