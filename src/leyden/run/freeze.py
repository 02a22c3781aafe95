"""Make a run from a composed config, with the names of other runs replaced by their paths."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from leyden.config.composition import Composition
from leyden.errors import UserError
from leyden.run.directory import Run
from leyden.run.find import find_run


def freeze(
    composition: Composition, path: Path | None = None, parent: dict[str, Any] | None = None, **facts: Any
) -> Run:
    """Make a new run directory whose config names other runs by their paths; see `Run.create`."""
    return Run.create(with_run_paths(composition), path, parent, **facts)


def with_run_paths(composition: Composition) -> Composition:
    """Return a composition in which `feature.run` is a path, both in `config` and in `raw`, which reruns read.

    A name such as `last` would mean another run tomorrow.

    Raises:
        UserError: if there is no such run.
    """
    raw, config = copy.deepcopy(composition.raw), copy.deepcopy(composition.config)
    for nodes in (config, config.get("model"), raw, raw.get("model")):
        node = nodes.get("feature") if isinstance(nodes, dict) else None
        if isinstance(node, dict) and isinstance(name := node.get("run"), str) and not name.endswith(".ckpt"):
            node["run"] = str(_path_of(name))
    return replace(composition, raw=raw, config=config)


def _path_of(name: str) -> Path:
    try:
        return find_run(name).path
    except UserError as error:
        raise UserError(f"feature.run={name}: {str(error).removeprefix(f'{name}: ')}") from error
