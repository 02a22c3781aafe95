"""Sharded checkpoints: a folder to which every rank writes its part, and which any number of ranks can read.

plain.ckpt              the checkpoint as in a single file, but with only the shapes of its tensors
.metadata  __R_0.distcp  the tensors, in the format of torch.distributed.checkpoint
"""

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_with_path

from leyden.checkpoints.layout import PLAIN, KeyPath, Layout, save_synced

# The classes that torch pickles into .metadata; everything else is refused.
METADATA_CLASSES = {
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


def write(checkpoint: dict[str, Any], folder: Path, group: dist.ProcessGroup) -> None:
    """Write a checkpoint to an empty folder, together with the ranks of a gloo group; rank 0 writes unsharded tensors.

    Raises:
        OSError: on every rank, if one of them could not write.
    """
    is_rank_0 = dist.get_rank(group) == 0
    tensors = {}

    def replace_tensor(path: tuple, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if isinstance(leaf, DTensor) or is_rank_0:
            tensors[_dotted_key(path)] = leaf.detach()
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")

    plain = tree_map_with_path(replace_tensor, checkpoint)
    try:
        dcp.save(tensors, storage_writer=_Writer(folder), process_group=group)
    except CheckpointException as error:
        raise OSError(str(_first_error(error))) from error
    if is_rank_0:  # written last, so that no rank waits for rank 0, or writes to a folder that it has removed
        save_synced(plain, folder / PLAIN)


def read(folder: Path, layout: Layout | None = None) -> dict[str, Any]:
    """Read a checkpoint without running code in it; its tensors are whole, or sharded according to `layout`."""
    plain = torch.load(folder / PLAIN, map_location="cpu", weights_only=True)
    tensors = {}

    def allocate(path: tuple, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        shard = layout(_key_path(path), leaf.shape) if layout else None
        empty = torch.empty_like(leaf, device="cpu") if shard is None else torch.empty_like(shard, dtype=leaf.dtype)
        return tensors.setdefault(_dotted_key(path), empty.detach())

    checkpoint = tree_map_with_path(allocate, plain)
    reader = _Reader(folder)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each rank reads for itself
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise RuntimeError(str(_first_error(error))) from error
    return checkpoint


def distribute(checkpoint: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """Shard the whole tensors of a checkpoint according to `layout`, without communication between the ranks."""

    def shard_leaf(path: tuple, leaf: Any) -> Any:
        shard = layout(_key_path(path), leaf.shape) if isinstance(leaf, Tensor) else None
        if shard is None:
            return leaf
        return distribute_tensor(leaf.to(shard.device), shard.device_mesh, shard.placements, src_data_rank=None)

    return tree_map_with_path(shard_leaf, checkpoint)


def find_damage(folder: Path) -> str | None:
    """Return the name and file of the first damaged tensor of a checkpoint, or None."""
    for index, info in _load_metadata(folder).storage_data.items():
        with (folder / info.relative_path).open("rb") as file:
            if not _is_intact(_read_record(file, info)):
                return f"{index.fqn} in {info.relative_path}"
    return None


class _Writer(dcp.FileSystemWriter):
    def storage_meta(self) -> metadata.StorageMeta:
        """Return metadata without the path of the checkpoint."""
        return metadata.StorageMeta()


class _Reader(dcp.FileSystemReader):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._metadata = _load_metadata(folder)

    def read_metadata(self, *_: Any, **__: Any) -> metadata.Metadata:
        """Return the metadata; torch's own method would run code in a pickle."""
        return self._metadata

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        record = _read_record(file, sinfo)
        if not _is_intact(record):  # torch.load does not check this
            raise RuntimeError(f"damaged at byte {sinfo.offset} of {sinfo.relative_path}")
        return record


def _load_metadata(folder: Path) -> metadata.Metadata:
    with (folder / ".metadata").open("rb") as file:
        content = _Unpickler(file).load()
    for info in content.storage_data.values():
        if Path(info.relative_path).name != info.relative_path:
            raise pickle.UnpicklingError(f"Unsupported file {info.relative_path}")
    return content


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        kind = getattr(torch, name, None) if module == "torch" else None
        kind = kind if isinstance(kind, torch.dtype) else METADATA_CLASSES.get(name)
        if kind is None or (module != "torch" and module != kind.__module__):
            raise pickle.UnpicklingError(f"Unsupported class {module}.{name}")
        return kind


def _read_record(file: IO[bytes], info: Any) -> io.BytesIO:
    """Read the zip archive that torch.save wrote for a tensor."""
    file.seek(info.offset)
    return io.BytesIO(file.read(info.length))


def _is_intact(record: io.BytesIO) -> bool:
    with zipfile.ZipFile(record) as archive:
        is_intact = archive.testzip() is None
    record.seek(0)
    return is_intact


def _first_error(error: CheckpointException) -> BaseException:
    """Return the error of the first rank that failed, without the tracebacks of all."""
    return next(iter(error.failures.values()))[0]


def _key_path(path: tuple) -> KeyPath:
    return tuple(key.key if hasattr(key, "key") else key.idx for key in path)


def _dotted_key(path: tuple) -> str:
    return ".".join(map(str, _key_path(path)))
