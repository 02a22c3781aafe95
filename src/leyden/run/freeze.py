"""Make a run from a composed config, with the names of other runs and of weights replaced by paths."""

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from leyden.config.composition import Composition
from leyden.config.locations import project_root
from leyden.config.run_config import Init, RunConfig, as_init
from leyden.errors import UserError
from leyden.run.directory import Run, step_of
from leyden.run.find import find_checkpoint, find_run
from leyden.run.initial_weights import SHARDED, digest, is_weights

SUFFIXES = (
    ".bin",
    ".ckpt",
    ".pt",
    ".pth",
    ".safetensors",
)  # of files of weights; a name with any other suffix may mean a run


def freeze(
    composition: Composition, path: Path | None = None, parent: dict[str, Any] | None = None, **facts: Any
) -> Run:
    """Make a new run directory whose config names other runs by their paths; see `Run.create`."""
    return Run.create(with_run_paths(composition), path, parent, **facts)


def with_run_paths(composition: Composition) -> Composition:
    """Return a composition in which `feature.run` and `init` are paths, in `config` and in `raw`, which reruns read.

    A name such as `last` would mean another run tomorrow. `init` also gets the sha256 of the weights.

    Raises:
        UserError: if there is no such run or file.
    """
    raw, config = copy.deepcopy(composition.raw), copy.deepcopy(composition.config)
    for nodes in (config, config.get("model"), raw, raw.get("model")):
        node = nodes.get("feature") if isinstance(nodes, dict) else None
        if isinstance(node, dict) and isinstance(name := node.get("run"), str) and not name.endswith(".ckpt"):
            node["run"] = str(_path_of(name))
    if config.get("init"):
        raw["init"] = config["init"] = freeze_init(config["init"])
    return replace(composition, raw=raw, config=config)


def freeze_init(init: Any) -> Init:
    """Return `init` with the path and the sha256 of the file of weights, and the step if it is a checkpoint.

    An `init` that is already frozen does not change, even if its file is gone: a rerun uses its parent's copy.

    Raises:
        UserError: if there are no such weights.
    """
    node = {key: value for key, value in as_init(init).items() if value is not None}
    if _is_frozen(node):
        return cast(Init, node)
    path = find_weights(init)
    node.pop("checkpoint", None)
    facts = {"weights": str(path), "sha256": node.get("sha256") or digest(path)}
    is_checkpoint = re.fullmatch(r"step-\d+\.ckpt", path.name)
    return cast(Init, node | facts | ({"step": step_of(path)} if is_checkpoint else {}))


def check_init(config: RunConfig) -> None:
    """Check that the weights that `init` of a config names exist, unless `init` is frozen.

    Raises:
        UserError: if they do not.
    """
    init = as_init(config.get("init"))
    if init and not _is_frozen(init):
        find_weights(init)


def _is_frozen(init: Mapping[str, Any]) -> bool:
    return init.get("sha256") is not None and Path(init["weights"]).is_absolute()


def find_weights(init: Any) -> Path:
    """Return the path of the file of weights that `init` means: a file, or the checkpoint of a run.

    Raises:
        UserError: if there is no such file, it holds no weights, or the run has no such checkpoint.
    """
    node = as_init(init)
    name, checkpoint = node["weights"], node.get("checkpoint")
    try:
        path = Path(_in_project(name))
        if path.is_file() or (path / SHARDED).is_file():
            if checkpoint:
                raise UserError(
                    f"{name}: init.checkpoint={checkpoint} chooses a checkpoint of a run, but this is a file"
                )
            path = path.resolve()
        elif path.suffix in SUFFIXES:
            raise UserError(f"{name}: there is no such file")
        else:
            path = find_checkpoint(find_run(_in_project(name)), checkpoint).resolve()
        if not is_weights(path):
            raise UserError(
                f"{name}: not a file of weights: a checkpoint, a safetensors file, or what torch.save wrote"
            )
    except UserError as error:
        reason = str(error).removeprefix(f"{name}: ").replace("--checkpoint=", "init.checkpoint=")
        raise UserError(f"init={name}: {reason}") from error
    except OSError as error:
        raise UserError(f"init={name}: it cannot be read: {error.strerror}") from error
    return path


def _in_project(name: str) -> str:
    """Return the path that a name means in the project's folder, unless the working directory has such a path, too."""
    path = project_root() / name
    is_there = any(file.is_file() for file in (path, path / SHARDED, path / "config.yaml"))
    return str(path) if is_there and not Path(name).exists() else name


def _path_of(name: str) -> Path:
    try:
        return find_run(_in_project(name)).path
    except UserError as error:
        raise UserError(f"feature.run={name}: {str(error).removeprefix(f'{name}: ')}") from error
