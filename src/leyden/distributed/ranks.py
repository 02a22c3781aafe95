"""What ranks tell one another: that they are there, which run they work on, and what they decide together.

Alone, every function here answers for the one process that there is.
"""

import hashlib
import json
import os
import platform
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only

import leyden
from leyden.distributed.world import World
from leyden.errors import UserError

START = timedelta(minutes=10)  # until every rank is there; imports are slow on a cold file system
NCCL_LATER = timedelta(seconds=60)  # than gloo's agreement, which says in Python what NCCL says by ending the process
PREPARED = timedelta(days=1)  # until every rank has what it downloads and prepares for itself
_store: Any = None  # of the run that the ranks work on
_control: Any = None  # a gloo group beside NCCL's, for what concerns processes and not devices
_timeout = timedelta(seconds=300)  # until ranks give up waiting for one of them


def open_store(world: World, listener: socket.socket | None = None) -> dist.Store:
    """Connect the ranks' small key-value store; rank 0 keeps it unless torchrun does.

    `listener` is a bound socket for rank 0 to keep the store on.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.TCPStore(world.address, world.port, is_master=False, timeout=START)
        return dist.PrefixStore("leyden", store)
    listen = {} if listener is None else {"master_listen_fd": listener.detach()}
    try:
        return dist.TCPStore(
            world.address,
            world.port,
            world.size,
            is_master=world.rank == 0,
            timeout=START,
            wait_for_workers=False,
            **listen,
        )
    except dist.DistNetworkError as error:
        raise UserError(
            f"rank 0 cannot be reached at {world.address}:{world.port} ({str(error).splitlines()[0]}): set MASTER_ADDR "
            "and MASTER_PORT to where every node reaches it"
        ) from error


def join(world: World, store: dist.Store, config: dict) -> None:
    """Wait until every rank is here and has the same config and code, then make the process group.

    Raises:
        UserError: when a rank has another config or other versions.
    """
    global _store, _control, _timeout
    mine = {"host": platform.node(), "config": _digest(config), **_versions()}
    store.set(f"here/{world.rank}", json.dumps(mine))
    _await(store, [f"here/{rank}" for rank in range(world.size)], START)
    others = [json.loads(store.get(f"here/{rank}")) for rank in range(world.size)]
    for rank, other in enumerate(others):
        for fact in mine.keys() - {"host"}:
            if other[fact] != others[0][fact]:
                raise UserError(
                    f"rank {rank} on {other['host']} has another {fact} than rank 0 on {others[0]['host']}: "
                    f"{other[fact]}, {others[0][fact]}"
                )
    _store, _timeout = store, timedelta(seconds=config["timeout"])
    on_gpu = config["trainer"].get("accelerator") in ("gpu", "cuda") or (
        config["trainer"].get("accelerator") == "auto" and torch.cuda.is_available()
    )
    if on_gpu:
        devices = config["trainer"].get("devices")
        torch.cuda.set_device(devices[world.local_rank] if isinstance(devices, list) else world.local_rank)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("group", store),
        rank=world.rank,
        world_size=world.size,
        timeout=_timeout + (NCCL_LATER if on_gpu else timedelta()),
    )
    _control = new_group() if on_gpu else dist.group.WORLD
    rank_zero_only.rank = world.rank  # Lightning read it when it was imported, before there were ranks


def barrier(place: str) -> None:
    """Wait for every rank to come to a place in the code; `timeout` is not for the downloads that may be before it."""
    if _control is not None:
        _store.set(f"{place}/{rank()}", "")
        _await(_store, [f"{place}/{other}" for other in range(size())], PREPARED)


def _await(store: dist.Store, keys: list[str], limit: timedelta | None = None) -> None:
    """Wait until others have set keys, looking again and again: the store's own wait would hold signals back."""
    until = time.monotonic() + limit.total_seconds() if limit else float("inf")
    pause = 0.001
    while not store.check(keys):
        if time.monotonic() > until:
            raise RuntimeError(f"timed out waiting for the other ranks ({', '.join(keys)})")
        time.sleep(pause := min(0.1, 2 * pause))


def new_group() -> Any:
    """Make a further gloo group of all ranks: what a thread says in it gets in nobody's way."""
    return dist.new_group(backend="gloo", timeout=_timeout)


def leave() -> None:
    """Take the process group down."""
    global _store, _control
    if dist.is_initialized():
        dist.destroy_process_group()
    _store = _control = None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    """What must be the same everywhere: a rank on another version computes something else."""
    source = hashlib.sha256()
    for path in sorted(Path(leyden.__file__).parent.rglob("*.py")):
        source.update(path.read_bytes())
    names = ("torch", "lightning", "torchmetrics")
    return {"leyden source": source.hexdigest()[:16], **{name: version(name) for name in names}}


def size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if _control is not None else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if _control is not None else 0


def gather(value: Any) -> list[Any]:
    """Return every rank's value (any plain object), in the order of ranks."""
    if _control is None:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value, group=_control)
    return values


def broadcast(value: Any) -> Any:
    """Return rank 0's value."""
    if _control is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_control)
    return box[0]


def all_reduce_max(numbers: list[int]) -> list[int]:
    """Return the elementwise maximum over ranks of a list of numbers."""
    if _control is None:
        return numbers
    tensor = torch.tensor(numbers)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_control)
    return tensor.tolist()


class Roster:
    """Ranks that somebody else made, torchrun or srun: rank 0 says which runs to work on, the others listen."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._kept = open_store(world)  # torchrun's, which outlives a restart of the ranks: each round has its own keys
        self._round = self._kept.add(f"starts/{world.rank}", 1) - 1  # agents do not count restarts alike
        self.store = dist.PrefixStore(f"round {self._round}", self._kept)
        self._jobs = 0

    def run_before_restart(self) -> Path | None:
        """Return the run that rank 0 started at this point before torchrun restarted the ranks."""
        key = f"begun/{self._jobs}"
        return Path(self._kept.get(key).decode()) if self._round and self._kept.check([key]) else None

    def call(self, path: Path, config: dict) -> dist.Store:
        """Have every rank work on a run; returns the store for it."""
        self._kept.set(f"begun/{self._jobs}", str(path))
        self.store.set(f"job/{self._jobs}", json.dumps({"path": str(path), "config": config}))
        self._jobs += 1
        return dist.PrefixStore(f"run/{self._jobs}", self.store)

    def dismiss(self, exit_code: int) -> None:
        """Say that there is no more to do, and how it went; stay until all know, for the store may be here."""
        self.store.set(f"job/{self._jobs}", json.dumps({"exit_code": exit_code}))
        until = time.monotonic() + (10.0 if exit_code == 0 else 1.0)
        while self.store.add("gone", 0) < self.world.size - 1 and time.monotonic() < until:
            time.sleep(0.02)

    def jobs(self) -> Iterator[tuple[Path, dict, dist.Store]]:
        """Yield what rank 0 calls for; returns the exit code at last."""
        while True:
            _await(self.store, [f"job/{self._jobs}"])  # rank 0 may be idle for long, and is watched by its starter
            message = json.loads(self.store.get(f"job/{self._jobs}"))
            self._jobs += 1
            if "exit_code" in message:
                self.store.add("gone", 1)
                return message["exit_code"]
            yield Path(message["path"]), message["config"], dist.PrefixStore(f"run/{self._jobs}", self.store)
