"""The layout of sharded checkpoints: which of their tensors are sharded, and how the ranks share them.

This module does not import torch.distributed.tensor, which takes a second. If no other code has imported it, no tensor
is sharded.
"""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

PLAIN = "plain.ckpt"  # the file of a sharded checkpoint that holds everything that is not sharded

KeyPath = tuple[str | int, ...]  # the keys that lead to a tensor in a checkpoint
Layout = Callable[[KeyPath, torch.Size], "DTensor | None"]  # returns a tensor with the required sharding


def is_shard(value: Any) -> TypeGuard["DTensor"]:
    """Return whether a value is a sharded tensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def is_sharded(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint holds sharded tensors."""
    return any(map(is_shard, tree_leaves(checkpoint)))


def layout_of(model: Module, optimizers: Iterable[Optimizer] = ()) -> Layout | None:
    """Return the layout of a model's weights and its optimizers' states, or None if they are not sharded."""
    weights = {name: t for name, t in model.state_dict().items() if is_shard(t)}
    parameters = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]

    def layout(path: KeyPath, size: torch.Size) -> "DTensor | None":
        match path:
            case "state_dict" | "current_model_state", str(name):  # the latter exists if weights are averaged
                return weights.get(name)
            case "optimizer_states", int(i), "state", int(k), str() if parameters and parameters[i][k].shape == size:
                return parameters[i][k]
        return None

    return layout if weights else None


def save_synced(checkpoint: dict[str, Any], path: Path) -> None:
    """Save a checkpoint as one file, and flush it, so that it survives a power cut."""
    with path.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
