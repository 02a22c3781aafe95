"""Write checkpoints atomically, check them, and load them as plain data and tensors."""

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
from rich.filesize import decimal
from torch import Tensor
from torch import distributed as dist
from torch.utils._pytree import tree_leaves, tree_map_only

from leyden.checkpoints.layout import PLAIN, Layout, is_sharded, layout_of, save_synced
from leyden.console import say
from leyden.distributed import ranks
from leyden.errors import CheckpointError, UserError
from leyden.files import sync_folder
from leyden.files.formats import CHECKPOINT

HEADROOM = 16 << 20  # bytes left free for metrics, figures and status


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checks the free disk space, writes to a temporary file beside the target, flushes it and renames it.

    A checkpoint with sharded tensors becomes a folder (`leyden.checkpoints.sharded`), which all ranks save together.
    """

    def __init__(self) -> None:
        super().__init__()
        self._write_future: Future | None = None
        self._group: Any = None  # the process group of the ranks that write shards

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save a checkpoint whole or not at all.

        `storage_options` may hold `on_complete`, a function that rank 0 calls when the checkpoint is complete, and
        `background`: the tensors are copied to the host's memory, and a thread writes them while training continues.

        Raises:
            OSError: if the disk has no room; earlier checkpoints are not touched.
        """
        self.wait()
        options = {"on_complete": lambda: None, "background": False} | (storage_options or {})
        as_shards = is_sharded(checkpoint)
        if as_shards and self._group is None:
            self._group = ranks.new_group()
        function = self._write_folder if as_shards else _write_file
        write = partial(function, path=Path(path), on_complete=options["on_complete"])
        if not options["background"]:
            write(checkpoint)
            return
        thread = ThreadPoolExecutor(1, "checkpoint")
        host_copy = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), checkpoint)
        self._write_future = thread.submit(write, host_copy)
        thread.shutdown(wait=False)  # the thread ends after this task

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint as `load` does; the other arguments are ignored."""
        return load(Path(path))

    def wait(self) -> None:
        """Wait until the background thread has written its checkpoint.

        Raises:
            OSError: if it could not be written.
        """
        future, self._write_future = self._write_future, None
        if future:
            future.result()

    def poll(self) -> None:
        """Raise the error of the background thread if it has failed; never wait."""
        if self._write_future and self._write_future.done():
            self.wait()

    def teardown(self) -> None:
        """Wait for the background thread.

        Its error is only printed, because training may be failing with another error.
        """
        try:
            self.wait()
        except OSError as error:
            say(str(error))

    def _write_folder(self, checkpoint: dict[str, Any], path: Path, on_complete: Callable[[], None]) -> None:
        temporary, is_rank_0 = _temporary_path(path), dist.get_rank(self._group) == 0
        refusal = [_prepare_folder(checkpoint, path, temporary) if is_rank_0 else None]
        try:
            dist.broadcast_object_list(refusal, src=0, group=self._group)
        except RuntimeError as error:  # a rank has died
            raise _write_error(path, error) from error
        if refusal[0]:
            raise CheckpointError(refusal[0])
        from leyden.checkpoints import sharded  # takes a second, since it imports torch.distributed.tensor

        try:
            sharded.write(checkpoint, temporary, self._group)
            if is_rank_0:
                sync_folder(temporary)
                remove(path)
                temporary.rename(path)
        except (OSError, RuntimeError) as error:
            raise _write_error(path, error) from error
        finally:
            if is_rank_0:
                remove(temporary)
        if is_rank_0:
            sync_folder(path.parent)
            on_complete()


def _write_file(checkpoint: dict[str, Any], path: Path, on_complete: Callable[[], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    if refusal := _disk_refusal(checkpoint, path):
        raise CheckpointError(refusal)
    try:
        save_synced(checkpoint, temporary)
        if path.is_dir():
            remove(path)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise _write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    on_complete()


def _prepare_folder(checkpoint: dict[str, Any], path: Path, temporary: Path) -> str | None:
    """Make an empty folder, or return why that is impossible."""
    try:
        remove(temporary)
        temporary.mkdir(parents=True)
        return _disk_refusal(checkpoint, path)
    except OSError as error:
        return str(_write_error(path, error))


def _disk_refusal(checkpoint: dict[str, Any], path: Path) -> str | None:
    """Return a refusal if the disk is too full for a checkpoint with some headroom, else None."""
    num_bytes = sum(t.numel() * t.element_size() for t in tree_leaves(checkpoint) if isinstance(t, Tensor))
    free_bytes = shutil.disk_usage(path.parent).free
    num_bytes += min(HEADROOM, num_bytes)
    if free_bytes >= num_bytes:
        return None
    return (
        f"no room for {path.name}: with some reserve it needs {decimal(num_bytes)}, {path.parent} has "
        f"{decimal(free_bytes)} left; free some space, then leyden resume {path.parent.parent}"
    )


def _write_error(path: Path, error: Exception) -> OSError:
    """Return an OSError that says why a checkpoint could not be written; its errno is ENOSPC if the disk is full."""
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, RuntimeError) and shutil.disk_usage(path.parent).free < 1 << 20:
        code = errno.ENOSPC  # torch reports it as a plain RuntimeError
    if code:
        return OSError(code, os.strerror(code), str(path))
    return CheckpointError(f"{path} could not be written: {error}")


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def remove(path: Path) -> None:
    """Remove a checkpoint if it exists; a folder is renamed first, so that it is never seen partly removed."""
    if path.is_dir() and not path.is_symlink():
        hidden_path = path if path.name.startswith(".") else path.rename(path.with_name(f".{path.name}.old.tmp"))
        shutil.rmtree(hidden_path)
    else:
        path.unlink(missing_ok=True)


def link(name: Path, target: Path) -> None:
    """Atomically point the symbolic link `name` at its sibling `target`."""
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(name)


def problem(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if it is whole."""
    try:
        with zipfile.ZipFile(path / PLAIN if path.is_dir() else path) as archive:
            damaged_part = archive.testzip()
        if damaged_part is None:
            if path.is_dir():
                from leyden.checkpoints import sharded  # takes a second, since it imports torch.distributed.tensor

                damaged_part = sharded.find_damage(path)
            else:
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # reads only the structure
    except pickle.UnpicklingError:
        return None  # the file is whole; `load` refuses it, because it holds more than plain data
    except Exception as error:  # zipfile and torch raise eight kinds of errors for damaged headers
        return f"not a whole checkpoint ({type(error).__name__})"
    return f"damaged at {damaged_part}" if damaged_part else None


def origin(path: Path) -> dict[str, Any] | None:
    """Return the facts about the run that a checkpoint holds: {} if leyden did not write it, None if it cannot be read.

    Raises:
        UserError: if this leyden does not read its format.
    """
    try:
        file = path / PLAIN if path.is_dir() else path
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)  # reads only the structure
    except Exception:  # torch raises eight kinds of errors for damaged files
        return None
    facts = content.get("leyden") if isinstance(content, dict) else None
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        return {}
    CHECKPOINT.check(path, facts)
    kinds = {"manifest": dict, "metrics_size": int}
    return {key: value for key, value in facts.items() if isinstance(value, kinds.get(key, object))}


def remove_later(folder: Path, step: int) -> None:
    """Remove the checkpoints that were taken after a step; files that cannot be read stay."""
    for path in folder.glob("*.ckpt"):
        try:
            file = path / PLAIN if path.is_dir() else path
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)  # reads only the structure
            is_later = content["global_step"] > step
        except Exception:  # torch raises eight kinds of errors for damaged files
            continue
        if is_later:
            remove(path)


def read(path: Path, layout: Layout | None = None) -> Any:
    """Read what torch.save wrote, on the CPU, without running code in it; see `load`.

    Raises:
        UserError: if it cannot be read, or holds anything but plain data and tensors.
    """
    try:
        if path.is_dir():
            from leyden.checkpoints import sharded  # takes a second, since it imports torch.distributed.tensor

            return sharded.read(path, layout)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=layout is not None)
    except pickle.UnpicklingError as error:
        match = re.search(r"(?i)unsupported (global:?|class) ([\w.]+)", str(error))
        name = f": {match[2]}" if match else ""
        raise UserError(f"{path} holds more than plain data and tensors, so it is not loaded{name}") from error
    except Exception as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def load(path: Path, layout: Layout | None = None) -> dict[str, Any]:
    """Load a checkpoint on the CPU without running code in it; tensors in `layout` are sharded accordingly.

    Raises:
        UserError: if it is damaged, holds anything but plain data and tensors, or has an unsupported format.
    """
    # A folder is checked while it is read, since a rank may need only a part of it.
    if not path.is_dir() and (reason := problem(path)):
        raise UserError(f"{path}: {reason}")
    checkpoint = read(path, layout)
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of a run: it has no state_dict")
    if isinstance(facts := checkpoint.get("leyden"), dict):
        CHECKPOINT.check(path, facts)
    if layout and not path.is_dir():
        from leyden.checkpoints import sharded  # takes a second, since it imports torch.distributed.tensor

        return sharded.distribute(checkpoint, layout)
    return checkpoint


def load_weights(model: LightningModule, path: Path) -> None:
    """Load the weights of a checkpoint into a model, the averaged ones if weights were averaged.

    Raises:
        UserError: if they do not fit the model.
    """
    model.configure_model()
    checkpoint = load(path, layout_of(model))
    model.on_load_checkpoint(checkpoint)
    try:
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
    except RuntimeError as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(f"{path.name} does not fit the model of this config: {reason[0].strip()}") from error


def is_plain(value: Any) -> bool:
    """Return whether a value consists of numbers, text, tensors and containers of these."""
    if isinstance(value, dict):
        return all(isinstance(k, str | int) and is_plain(v) for k, v in value.items()) and type(value) is dict
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, Tensor)
