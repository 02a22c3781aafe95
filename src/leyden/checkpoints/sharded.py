"""Checkpoints in shards: a folder to which every rank writes its part, read by any number of them, or by one.

plain.ckpt              the checkpoint as a single file has it, but for its tensors, of which only shapes stand there
.metadata  __R_0.distcp  the tensors, in the format of torch.distributed.checkpoint
"""

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map_with_path

PLAIN = "plain.ckpt"
# what torch pickles into .metadata; everything else is refused
KNOWN = {
    kind.__qualname__: kind
    for kind in (
        metadata.ChunkStorageMetadata,
        metadata.Metadata,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        metadata.TensorProperties,
        metadata.TensorStorageMetadata,
        metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
        torch.Size,
    )
} | {"_get_layout": torch.serialization._get_layout}

Place = tuple[str | int, ...]  # where in a checkpoint something stands
Layout = Callable[[Place, torch.Size], DTensor | None]  # the tensor that one read there is to be cut up like


def is_sharded(checkpoint: dict[str, Any]) -> bool:
    """Tell whether a checkpoint holds tensors of which this rank has only a part."""
    return any(isinstance(leaf, DTensor) for leaf in tree_leaves(checkpoint))


def write(checkpoint: dict[str, Any], folder: Path, group: dist.ProcessGroup) -> None:
    """Write a checkpoint to an empty folder, together with the other ranks of a gloo group; whole tensors are rank 0's.

    Raises:
        OSError: on every rank, when one of them could not write.
    """
    chief = dist.get_rank(group) == 0
    tensors = {}

    def take(path: tuple, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if isinstance(leaf, DTensor) or chief:
            tensors[_key(path)] = leaf.detach()
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")

    plain = tree_map_with_path(take, checkpoint)
    try:
        dcp.save(tensors, storage_writer=_Writer(folder), process_group=group)
    except CheckpointException as error:
        raise OSError(str(_cause(error))) from error
    if chief:  # last: where rank 0 alone fails, nobody waits for it, or makes the folder again that it removes
        with (folder / PLAIN).open("wb") as file:
            torch.save(plain, file)
            file.flush()
            os.fsync(file.fileno())


def read(folder: Path, layout: Layout | None = None) -> dict[str, Any]:
    """Read a checkpoint, its tensors whole, or only the parts of them that `layout` says; no code in it is run."""
    plain = torch.load(folder / PLAIN, map_location="cpu", weights_only=True)
    tensors = {}

    def place(path: tuple, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        like = layout(_names(path), leaf.shape) if layout else None
        empty = torch.empty_like(leaf, device="cpu") if like is None else torch.empty_like(like, dtype=leaf.dtype)
        return tensors.setdefault(_key(path), empty.detach())

    checkpoint = tree_map_with_path(place, plain)
    reader = _Reader(folder)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each rank reads for itself
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise RuntimeError(str(_cause(error))) from error
    return checkpoint


def distribute(checkpoint: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """Cut the tensors of a checkpoint up as `layout` says, without a word between the ranks: each has them all."""

    def place(path: tuple, leaf: Any) -> Any:
        like = layout(_names(path), leaf.shape) if isinstance(leaf, Tensor) else None
        if like is None:
            return leaf
        return distribute_tensor(leaf.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    return tree_map_with_path(place, checkpoint)


def layout_of(model: Module, optimizers: Iterable[Optimizer] = ()) -> Layout | None:
    """Return how the weights of a model, and its optimizers' states, are cut up; None: they are not."""
    weights = {name: t for name, t in model.state_dict().items() if isinstance(t, DTensor)}
    learning = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]

    def layout(path: Place, size: torch.Size) -> DTensor | None:
        match path:
            case "state_dict" | "current_model_state", str(name):  # the second beside averaged weights
                return weights.get(name)
            case "optimizer_states", int(i), "state", int(k), str() if learning and learning[i][k].shape == size:
                return learning[i][k]
        return None

    return layout if weights else None


def damage(folder: Path) -> str | None:
    """Say what of the tensors of a checkpoint is damaged, or None."""
    for index, info in _metadata(folder).storage_data.items():
        with (folder / info.relative_path).open("rb") as file:
            if not _is_whole(_record(file, info)):
                return f"{index.fqn} in {info.relative_path}"
    return None


class _Writer(dcp.FileSystemWriter):
    def storage_meta(self) -> metadata.StorageMeta:
        """Say nothing of where it was written."""
        return metadata.StorageMeta()


class _Reader(dcp.FileSystemReader):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._metadata = _metadata(folder)

    def read_metadata(self, *_: Any, **__: Any) -> metadata.Metadata:
        """Say what stands where; torch's own would run what a pickle says."""
        return self._metadata

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        record = _record(file, sinfo)
        if not _is_whole(record):  # which torch.load does not look at
            raise RuntimeError(f"damaged at byte {sinfo.offset} of {sinfo.relative_path}")
        return record


def _metadata(folder: Path) -> metadata.Metadata:
    with (folder / ".metadata").open("rb") as file:
        found = _Unpickler(file).load()
    for info in found.storage_data.values():
        if Path(info.relative_path).name != info.relative_path:
            raise pickle.UnpicklingError(f"Unsupported file {info.relative_path}")
    return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = getattr(torch, name, None) if module == "torch" else None
        known = known if isinstance(known, torch.dtype) else KNOWN.get(name)
        if known is None or (module != "torch" and module != known.__module__):
            raise pickle.UnpicklingError(f"Unsupported class {module}.{name}")
        return known


def _record(file: IO[bytes], info: Any) -> io.BytesIO:
    """Read what torch.save wrote for a tensor, a zip archive."""
    file.seek(info.offset)
    return io.BytesIO(file.read(info.length))


def _is_whole(record: io.BytesIO) -> bool:
    with zipfile.ZipFile(record) as archive:
        whole = archive.testzip() is None
    record.seek(0)
    return whole


def _cause(error: CheckpointException) -> BaseException:
    """Return what the first rank that failed met, without the traces of all."""
    return next(iter(error.failures.values()))[0]


def _names(path: tuple) -> Place:
    return tuple(key.key if hasattr(key, "key") else key.idx for key in path)


def _key(path: tuple) -> str:
    return ".".join(map(str, _names(path)))
