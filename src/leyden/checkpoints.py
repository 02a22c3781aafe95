"""Checkpoints: plain data and tensors, each whole or absent, checked before anything trusts it."""

import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from leyden.errors import UserError

HEADROOM = 16 << 20  # bytes left free for metrics, figures and status


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then renames; refuses first when the disk is too full."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint whole or not at all.

        Raises:
            OSError: when the disk has no room; what was saved before is untouched.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        need = sum(t.numel() * t.element_size() for t in tree_leaves(checkpoint) if isinstance(t, Tensor))
        free = shutil.disk_usage(path.parent).free
        need += min(HEADROOM, need)
        if free < need:
            raise OSError(
                f"no room for {path.name}: with some room to spare it needs {_size(need)}, {path.parent} has "
                f"{_size(free)} left; free some, then leyden resume {path.parent.parent}"
            )
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise OSError(f"{path} could not be written: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint as `load` does, whatever the caller asks for."""
        return load(Path(path))


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link(name: Path, target: Path) -> None:
    """Point the symbolic link `name` at its sibling `target`, in one step."""
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(name)


def problem(path: Path) -> str | None:
    """Say what is wrong with a checkpoint file, or None if it is whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is None:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # reads the structure alone
    except pickle.UnpicklingError:
        return None  # whole, but not plain: for `load` to refuse
    except Exception as error:  # zipfile and torch have eight kinds for damaged headers
        return f"not a whole checkpoint ({type(error).__name__})"
    return f"damaged at {broken}" if broken else None


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint on the CPU; no code in the file is run.

    Raises:
        UserError: when the file is damaged or holds anything but plain data and tensors.
    """
    if reason := problem(path):
        raise UserError(f"{path}: {reason}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?i)unsupported (global:?|class) ([\w.]+)", str(error))
        what = f": {found[2]}" if found else ""
        raise UserError(f"{path} holds more than plain data and tensors, so it is not loaded{what}") from error
    except Exception as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of a run: it has no state_dict")
    return checkpoint


def load_weights(model: LightningModule, path: Path) -> None:
    """Give a model the weights of a checkpoint, the averaged ones if weights were averaged.

    Raises:
        UserError: when they are not the weights of this model.
    """
    saved = load(path)
    model.configure_model()
    model.on_load_checkpoint(saved)
    try:
        model.load_state_dict(saved["state_dict"], strict=model.strict_loading)
    except RuntimeError as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(f"{path.name} does not fit the model of this config: {reason[0].strip()}") from error


def is_plain(value: Any) -> bool:
    """Tell whether a value is numbers, text, tensors and containers of them."""
    if isinstance(value, dict):
        return all(isinstance(k, str | int) and is_plain(v) for k, v in value.items()) and type(value) is dict
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
