"""Checkpoints: plain data and tensors, each whole or absent, checked before anything trusts it."""

import errno
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch import distributed as dist
from torch.utils._pytree import tree_leaves, tree_map_only

from leyden.checkpoints import sharded
from leyden.console import say
from leyden.distributed import ranks
from leyden.errors import CheckpointError, UserError

HEADROOM = 16 << 20  # bytes left free for metrics, figures and status


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then renames; refuses first when the disk is too full.

    A checkpoint with tensors in shards becomes a folder (`leyden.sharded`), and every rank is to save it together.
    """

    def __init__(self) -> None:
        super().__init__()
        self._writing: Future | None = None
        self._group: Any = None  # of the ranks that write shards

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint whole or not at all.

        `storage_options` may hold `then`, which rank 0 calls when the checkpoint is whole, and `background`: with it
        the tensors are copied to the host's memory, and a thread writes them while the training goes on.

        Raises:
            OSError: when the disk has no room; what was saved before is untouched.
        """
        self.wait()
        options = {"then": lambda: None, "background": False} | (storage_options or {})
        in_shards = sharded.is_sharded(checkpoint)
        if in_shards and self._group is None:
            self._group = ranks.new_group()
        write = partial(self._write_folder if in_shards else _write_file, path=Path(path), then=options["then"])
        if not options["background"]:
            write(checkpoint)
            return
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing = thread.submit(write, tree_map_only(Tensor, _copy, checkpoint))
        thread.shutdown(wait=False)  # when it is done

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint as `load` does, whatever the caller asks for."""
        return load(Path(path))

    def wait(self) -> None:
        """Wait until what is being written is whole.

        Raises:
            OSError: when it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def poll(self) -> None:
        """Raise what has gone wrong in the background, waiting for nothing."""
        if self._writing and self._writing.done():
            self.wait()

    def teardown(self) -> None:
        """Let what is being written become whole; the training ends for a reason of its own."""
        try:
            self.wait()
        except OSError as error:
            say(str(error))

    def _write_folder(self, checkpoint: dict[str, Any], path: Path, then: Callable[[], None]) -> None:
        temporary, chief = _beside(path), dist.get_rank(self._group) == 0
        refusal = [_prepared(checkpoint, path, temporary) if chief else None]
        try:
            dist.broadcast_object_list(refusal, src=0, group=self._group)
        except RuntimeError as error:  # a rank is gone
            raise _unwritten(path, error) from error
        if refusal[0]:
            raise CheckpointError(refusal[0])
        try:
            sharded.write(checkpoint, temporary, self._group)
            if chief:
                sync_folder(temporary)
                remove(path)
                temporary.rename(path)
        except (OSError, RuntimeError) as error:
            raise _unwritten(path, error) from error
        finally:
            if chief:
                remove(temporary)
        if chief:
            sync_folder(path.parent)
            then()


def _write_file(checkpoint: dict[str, Any], path: Path, then: Callable[[], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    if refusal := _no_room(checkpoint, path):
        raise CheckpointError(refusal)
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.is_dir():
            remove(path)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise _unwritten(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    then()


def _prepared(checkpoint: dict[str, Any], path: Path, temporary: Path) -> str | None:
    """Make an empty folder, or say why not."""
    try:
        remove(temporary)
        temporary.mkdir(parents=True)
        return _no_room(checkpoint, path)
    except OSError as error:
        return str(_unwritten(path, error))


def _no_room(checkpoint: dict[str, Any], path: Path) -> str | None:
    """Say so if the disk is too full for a checkpoint, and some room to spare."""
    need = sum(t.numel() * t.element_size() for t in tree_leaves(checkpoint) if isinstance(t, Tensor))
    free = shutil.disk_usage(path.parent).free
    need += min(HEADROOM, need)
    if free >= need:
        return None
    return (
        f"no room for {path.name}: with some room to spare it needs {_size(need)}, {path.parent} has "
        f"{_size(free)} left; free some, then leyden resume {path.parent.parent}"
    )


def _unwritten(path: Path, error: Exception) -> OSError:
    """Return the error that says why a checkpoint could not be written: a full disk as the system says it."""
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, RuntimeError) and shutil.disk_usage(path.parent).free < 1 << 20:
        code = errno.ENOSPC  # torch does not say
    if code:
        return OSError(code, os.strerror(code), str(path))
    return CheckpointError(f"{path} could not be written: {error}")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def remove(path: Path) -> None:
    """Remove a checkpoint, if it is there: one that is a folder ceases to be a checkpoint first."""
    if path.is_dir() and not path.is_symlink():
        hidden = path if path.name.startswith(".") else path.rename(path.with_name(f".{path.name}.old.tmp"))
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)


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
    """Say what is wrong with a checkpoint, or None if it is whole."""
    try:
        with zipfile.ZipFile(path / sharded.PLAIN if path.is_dir() else path) as archive:
            broken = archive.testzip()
        if broken is None:
            if path.is_dir():
                broken = sharded.damage(path)
            else:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # reads the structure alone
    except pickle.UnpicklingError:
        return None  # whole, but not plain: for `load` to refuse
    except Exception as error:  # zipfile and torch have eight kinds for damaged headers
        return f"not a whole checkpoint ({type(error).__name__})"
    return f"damaged at {broken}" if broken else None


def origin(path: Path) -> dict[str, Any] | None:
    """Return what a checkpoint says of its run, nothing if it is not leyden's; None if it cannot be read."""
    try:
        file = path / sharded.PLAIN if path.is_dir() else path
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)  # reads the structure alone
    except Exception:  # of damaged files torch raises eight kinds
        return None
    facts = saved.get("leyden") if isinstance(saved, dict) else None
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        return {}
    kinds = {"manifest": dict, "metrics_size": int}
    return {key: value for key, value in facts.items() if isinstance(value, kinds.get(key, object))}


def load(path: Path, layout: sharded.Layout | None = None) -> dict[str, Any]:
    """Load a checkpoint on the CPU; no code in it is run. What `layout` knows is cut up as there, and lies there.

    Raises:
        UserError: when it is damaged or holds anything but plain data and tensors.
    """
    # to check all of a folder is to read all of it, where a rank may want a part: what is read is checked
    if not path.is_dir() and (reason := problem(path)):
        raise UserError(f"{path}: {reason}")
    try:
        checkpoint = (
            sharded.read(path, layout)
            if path.is_dir()
            else torch.load(path, map_location="cpu", weights_only=True, mmap=layout is not None)
        )
    except pickle.UnpicklingError as error:
        found = re.search(r"(?i)unsupported (global:?|class) ([\w.]+)", str(error))
        what = f": {found[2]}" if found else ""
        raise UserError(f"{path} holds more than plain data and tensors, so it is not loaded{what}") from error
    except Exception as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of a run: it has no state_dict")
    if layout and not path.is_dir():
        return sharded.distribute(checkpoint, layout)
    return checkpoint


def load_weights(model: LightningModule, path: Path) -> None:
    """Give a model the weights of a checkpoint, the averaged ones if weights were averaged.

    Raises:
        UserError: when they are not the weights of this model.
    """
    model.configure_model()
    saved = load(path, sharded.layout_of(model))
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
