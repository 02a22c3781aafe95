"""The ranks that train together, and this process's rank, detected from the environment without importing torch."""

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leyden.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among `size` ranks that train together, `local_size` of them on each node."""

    rank: int
    local_rank: int
    size: int
    local_size: int
    starter: str  # what started the ranks: leyden, torchrun, srun, mpirun
    address: str = "127.0.0.1"  # address of rank 0's node
    port: int = 0

    def __post_init__(self) -> None:
        """Refuse ranks that are spread unevenly over the nodes."""
        if self.size % self.local_size:
            raise UserError(
                f"{self.starter} started {self.size} ranks, {self.local_size} on this node: "
                "every node needs the same number"
            )

    @property
    def num_nodes(self) -> int:
        """The number of nodes."""
        return self.size // self.local_size

    def set_environ(self) -> None:
        """Write the world into the environment under torchrun's names, which every library reads."""
        os.environ |= {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "GROUP_RANK": str(self.rank // self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def detect_world(environ: Mapping[str, str] = os.environ) -> World | None:
    """Return the world that torchrun, a Kubernetes operator, srun or mpirun has made.

    Return None for a process that was not started as a rank.

    Raises:
        UserError: if the variables are incomplete, or the ranks are spread unevenly over the nodes.
    """
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
        return _from_torchrun(environ)
    if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environ:
        return _from_srun(environ)
    for rank, size, local_rank, local_size in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ):
        if int(environ.get(size, 1)) > 1 and local_rank in environ:
            return _from_mpirun(environ, *(int(environ[name]) for name in (rank, local_rank, size, local_size)))
    return None


def _from_torchrun(environ: Mapping[str, str]) -> World:
    rank, size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    # an operator that makes a pod for each rank sets no local rank
    local_rank, local_size = int(environ.get("LOCAL_RANK", 0)), int(environ.get("LOCAL_WORLD_SIZE", 1))
    return World(rank, local_rank, size, local_size, "torchrun", environ["MASTER_ADDR"], int(environ["MASTER_PORT"]))


def _from_srun(environ: Mapping[str, str]) -> World:
    tasks_per_node = environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # 2(x3), or 2,1 when uneven
    size = int(environ["SLURM_STEP_NUM_TASKS"])
    if not re.fullmatch(r"\d+(\(x\d+\))?", tasks_per_node):
        raise UserError(
            f"srun started {tasks_per_node} tasks on the nodes: every node needs the same number, --ntasks-per-node=…"
        )
    address = environ.get("MASTER_ADDR") or first_host(environ["SLURM_STEP_NODELIST"])
    job, step = int(environ["SLURM_JOB_ID"]), int(environ["SLURM_STEP_ID"])
    port = int(environ.get("MASTER_PORT") or 15000 + (31 * job + step) % 17000)  # below the ephemeral ports
    rank, local_rank = int(environ["SLURM_PROCID"]), int(environ["SLURM_LOCALID"])
    return World(rank, local_rank, size, int(tasks_per_node.partition("(")[0]), "srun", address, port)


def _from_mpirun(environ: Mapping[str, str], rank: int, local_rank: int, size: int, local_size: int) -> World:
    if size > local_size and "MASTER_ADDR" not in environ:
        raise UserError("mpirun over several nodes needs the first one's name: mpirun -x MASTER_ADDR=…")
    job = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid") or environ.get("PMI_JOBID") or ""
    address = environ.get("MASTER_ADDR", "127.0.0.1")
    port = int(environ.get("MASTER_PORT") or 15000 + zlib.crc32(job.encode()) % 17000)  # each job has its own
    return World(rank, local_rank, size, local_size, "mpirun", address, port)


def first_host(nodes: str) -> str:
    """Return the first host in SLURM's node list: `gpu[03-05,9],cpu1` begins with gpu03."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    if not match:
        raise UserError(f"SLURM_STEP_NODELIST={nodes} names no host")
    return "".join(part or "" for part in match.groups())


def local_ranks(config: Mapping[str, Any], world: World | None) -> int:
    """Return the number of ranks on this node, and check it against the config.

    Raises:
        UserError: if the config asks for another number of ranks or nodes than were started.
    """
    devices, nodes = config["trainer"].get("devices", "auto"), config["trainer"].get("num_nodes", "auto")
    if world is None:
        if nodes not in (1, "auto"):
            raise UserError(
                f"trainer.num_nodes={nodes}: start leyden on every node with torchrun or srun, or "
                "let SLURM do it with hydra/launcher=slurm"
            )
        return num_devices(devices, config["trainer"].get("accelerator", "auto"))
    for key, value, actual in (("devices", devices, world.local_size), ("num_nodes", nodes, world.num_nodes)):
        count = value if value in ("auto", -1, "-1") else num_devices(value, "")
        if count not in ("auto", -1, "-1", actual):
            noun = "ranks on this node" if key == "devices" else "nodes"
            raise UserError(
                f"{world.starter} made {actual} {noun}, but trainer.{key}={value}: accelerator=torchrun takes what is "
                f"there, or write trainer.{key}={actual}"
            )
    return world.local_size


def num_devices(devices: Any, accelerator: str) -> int:
    """Return how many devices Lightning's `devices` means: a number, a list, or all that there are."""
    if isinstance(devices, list):
        return len(devices)
    if devices not in ("auto", -1, "-1"):
        return len(devices.split(",")) if isinstance(devices, str) and "," in devices else int(devices)
    if accelerator not in ("gpu", "cuda", "auto"):
        return 1
    import torch  # counts devices without initialising them

    return max(1, torch.cuda.device_count())


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
