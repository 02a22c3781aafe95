"""Communication between ranks: joining them, announcing runs to them, and agreeing on values.

Without other ranks, every function returns the values of this process.
"""

import contextlib
import hashlib
import json
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only

from leyden.distributed.world import World
from leyden.errors import RunError, UserError

JOIN_TIMEOUT = timedelta(minutes=10)  # until every rank has joined; imports are slow on a cold file system
# Added to NCCL's timeout, so that gloo's expires first: gloo raises an error, while NCCL ends the process.
NCCL_MARGIN = timedelta(seconds=60)
BARRIER_TIMEOUT = timedelta(days=1)  # until every rank has downloaded and prepared its data
_store: Any = None  # the key-value store of the run that the ranks work on
_object_group: Any = None  # a gloo group beside NCCL's, for plain objects on the CPU
_timeout = timedelta(seconds=300)  # how long ranks wait for one another before they give up


def open_store(world: World, listener: socket.socket | None = None) -> dist.Store:
    """Connect to the ranks' key-value store, which rank 0 hosts unless torchrun does.

    `listener` is a bound socket for rank 0 to host the store on.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.TCPStore(world.address, world.port, is_master=False, timeout=JOIN_TIMEOUT)
        return dist.PrefixStore("leyden", store)
    listen_arguments = {} if listener is None else {"master_listen_fd": listener.detach()}
    try:
        return dist.TCPStore(
            world.address,
            world.port,
            world.size,
            is_master=world.rank == 0,
            timeout=JOIN_TIMEOUT,
            wait_for_workers=False,
            **listen_arguments,
        )
    except dist.DistNetworkError as error:
        raise UserError(
            f"rank 0 cannot be reached at {world.address}:{world.port} ({str(error).splitlines()[0]}): set MASTER_ADDR "
            "and MASTER_PORT to where every node reaches it"
        ) from error


def join(world: World, store: dist.Store, config: Mapping[str, Any]) -> None:
    """Wait for all ranks, check that they have the same config and code, and make the process group.

    Raises:
        UserError: if a rank has another config or other versions.
    """
    global _store, _object_group, _timeout
    config_digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    facts = {"host": platform.node(), "config": config_digest, **_versions()}
    store.set(f"here/{world.rank}", json.dumps(facts))
    _await(store, [f"here/{rank}" for rank in range(world.size)], JOIN_TIMEOUT)
    all_facts = [json.loads(store.get(f"here/{rank}")) for rank in range(world.size)]
    for rank, other in enumerate(all_facts):
        for fact in facts.keys() - {"host"}:
            if other[fact] != all_facts[0][fact]:
                raise UserError(
                    f"rank {rank} on {other['host']} has another {fact} than rank 0 on {all_facts[0]['host']}: "
                    f"{other[fact]}, {all_facts[0][fact]}"
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
        timeout=_timeout + (NCCL_MARGIN if on_gpu else timedelta()),
    )
    _object_group = new_group() if on_gpu else dist.group.WORLD
    rank_zero_only.rank = world.rank  # Lightning read it when it was imported, before there were ranks


def barrier(name: str) -> None:
    """Wait until every rank has reached the barrier of this name; it allows for long downloads before it."""
    if _object_group is not None:
        _store.set(f"{name}/{rank()}", "")
        _await(_store, [f"{name}/{other}" for other in range(size())], BARRIER_TIMEOUT)


def _await(store: dist.Store, keys: list[str], limit: timedelta | None = None) -> None:
    """Wait until other ranks have set keys, by polling, since the store's own wait would delay signals."""
    deadline = time.monotonic() + limit.total_seconds() if limit else float("inf")
    pause = 0.001
    while not store.check(keys):
        if time.monotonic() > deadline:
            raise RuntimeError(f"timed out waiting for the other ranks ({', '.join(keys)})")
        time.sleep(pause := min(0.1, 2 * pause))


def new_group() -> Any:
    """Make another gloo group of all ranks, for a thread whose messages must not mix with those of other groups."""
    return dist.new_group(backend="gloo", timeout=_timeout)


def leave() -> None:
    """Destroy the process group."""
    global _store, _object_group
    if dist.is_initialized():
        dist.destroy_process_group()
    _store = _object_group = None


def _versions() -> dict[str, str]:
    """Return the versions that must be equal on all ranks, since another version may compute other values."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        source.update(path.read_bytes())
    names = ("torch", "lightning", "torchmetrics")
    return {"leyden source": source.hexdigest()[:16], **{name: version(name) for name in names}}


def size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if _object_group is not None else 1


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if _object_group is not None else 0


def gather(value: Any) -> list[Any]:
    """Return every rank's value (any plain object), in the order of the ranks."""
    if _object_group is None:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value, group=_object_group)
    return values


def broadcast(value: Any) -> Any:
    """Return rank 0's value."""
    if _object_group is None:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_object_group)
    return values[0]


def all_reduce_max(numbers: list[int]) -> list[int]:
    """Return the elementwise maximum over ranks of a list of numbers."""
    if _object_group is None:
        return numbers
    tensor = torch.tensor(numbers)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_object_group)
    return tensor.tolist()


class Roster:
    """The ranks that torchrun or srun started: rank 0 announces runs, and the others join them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._agent_store = open_store(world)  # torchrun's store outlives a restart, so each round has its own keys
        self._round = self._agent_store.add(f"starts/{world.rank}", 1) - 1  # per rank: the agents' counts differ
        self.store = dist.PrefixStore(f"round {self._round}", self._agent_store)
        self._jobs = 0

    def run_before_restart(self) -> Path | None:
        """Return the run that rank 0 started at this point before torchrun restarted the ranks."""
        key = f"begun/{self._jobs}"
        return Path(self._agent_store.get(key).decode()) if self._round and self._agent_store.check([key]) else None

    def announce(self, path: Path, config: Mapping[str, Any]) -> dist.Store:
        """Announce a run to all ranks; return the store for it."""
        self._agent_store.set(f"begun/{self._jobs}", str(path))
        self.store.set(f"job/{self._jobs}", json.dumps({"path": str(path), "config": config}))
        self._jobs += 1
        return dist.PrefixStore(f"run/{self._jobs}", self.store)

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Tell the other ranks when the block ends, which announces one run, or the error that it raises before."""
        number = self._jobs
        try:
            yield
        except Exception as error:
            if self._jobs == number:
                self.store.set(f"job/{number}", json.dumps({"error": str(error)}))
                self._jobs += 1
            raise
        finally:
            self.store.set(f"ended/{number}", "")

    def await_end(self) -> None:
        """Wait, as a rank other than 0, until rank 0 has written how the run ended."""
        with contextlib.suppress(dist.DistError):  # rank 0, which may host the store, has ended
            _await(self.store, [f"ended/{self._jobs - 1}"])

    def dismiss(self, exit_code: int) -> None:
        """Announce the end and its exit code; wait until all ranks have read it, since this rank may host the store."""
        self.store.set(f"job/{self._jobs}", json.dumps({"exit_code": exit_code}))
        deadline = time.monotonic() + (10.0 if exit_code == 0 else 1.0)
        while self.store.add("gone", 0) < self.world.size - 1 and time.monotonic() < deadline:
            time.sleep(0.02)

    def report(self, exit_code: int) -> None:
        """Tell rank 0 that this rank has done its share of a command, with its exit code."""
        with contextlib.suppress(dist.DistError):  # rank 0, which may host the store, has failed and ended
            self.store.set(f"share/{self.world.rank}", str(exit_code))

    def await_shares(self) -> None:
        """Wait, as rank 0, until every other rank has done its share of a command.

        Raises:
            RunError: if one of them failed.
        """
        for rank in range(1, self.world.size):
            _await(self.store, [f"share/{rank}"])  # no time limit, since a share may take days
            if code := int(self.store.get(f"share/{rank}")):
                raise RunError(f"rank {rank} failed with exit code {code}")

    def jobs(self) -> Iterator[tuple[Path, dict, dist.Store]]:
        """Yield the path, config and store of each run that rank 0 announces; return the exit code at the end.

        Raises:
            UserError: if rank 0 cannot start the run that it should announce.
        """
        while True:
            _await(self.store, [f"job/{self._jobs}"])  # no time limit, since rank 0 may be idle for long
            message = json.loads(self.store.get(f"job/{self._jobs}"))
            self._jobs += 1
            if "error" in message:
                raise UserError(message["error"])
            if "exit_code" in message:
                self.store.add("gone", 1)
                return message["exit_code"]
            yield Path(message["path"]), message["config"], dist.PrefixStore(f"run/{self._jobs}", self.store)
