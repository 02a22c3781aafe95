"""`leyden doctor`: print a line for each thing that leyden uses: `ok`, `-` (optional and absent) or `!` (broken)."""

import contextlib
import netrc
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import yaml
from packaging.requirements import Requirement
from rich.text import Text

from leyden import __version__
from leyden.commands.arguments import Arguments
from leyden.config.extras import EXTRAS, find_missing
from leyden.config.locations import CONF
from leyden.config.yaml_files import choices
from leyden.console import console
from leyden.data.download import Files, data_root
from leyden.distributed.world import cores
from leyden.run.directory import runs_root

COLORS = {"ok": "green", "-": "dim", "!": "bold red"}
# versions that attackers uploaded to steal credentials; they were withdrawn
MALICIOUS_VERSIONS = {("lightning", "2.6.2"), ("lightning", "2.6.3")}
ALWAYS_LISTED = ("torch", "lightning", "hydra-core", "wandb")  # packages with a line even if nothing is wrong
NETWORK_TIMEOUT = 2.0  # seconds
LOW_DISK_BYTES = 1 << 30


class Finding(NamedTuple):
    """One line of the output."""

    mark: str
    name: str
    text: str


def main(arguments: list[str]) -> int:
    """Print the findings of every check; return 1 if anything is broken."""
    Arguments("doctor", "Report what this machine has of all that leyden can use.").parse_args(arguments)
    num_broken = 0
    for check in (python, packages, torch, wandb, slurm, data, extras, disk):
        for mark, name, text in check():
            num_broken += mark == "!"
            console.print(Text.assemble((f"{mark:2}", COLORS[mark]), f" {name:11} {text}"))
    if num_broken:
        console.print(f"\n{num_broken} to fix")
    return 1 if num_broken else 0


def python() -> Iterator[Finding]:
    """Report the interpreter, the processor and its threads."""
    yield Finding("ok", "python", f"{platform.python_version()} at {sys.executable}")
    threads = os.environ.get("OMP_NUM_THREADS")
    threads_text = f"OMP_NUM_THREADS={threads}" if threads else "one thread per core and process"
    yield Finding("ok", "cpu", f"{cores()} cores; {threads_text}")


def packages() -> Iterator[Finding]:
    """Compare the required packages with the versions that leyden is tested with."""
    yield Finding("ok", "leyden", f"{__version__} at {Path(__file__).parents[1]}")
    for requirement in (requirement for requirement in _requirements() if requirement.marker is None):
        name, specifier = requirement.name, str(requirement.specifier)
        install = f"pip install '{name}{specifier}'"
        installed_version = _version(name)
        if installed_version is None:
            yield Finding("!", name, f"is not installed: {install}")
        elif (name, installed_version) in MALICIOUS_VERSIONS:
            yield Finding(
                "!", name, f"{installed_version} steals credentials: {install}, then change every key that was here"
            )
        elif not requirement.specifier.contains(installed_version, prereleases=True):
            yield Finding("!", name, f"{installed_version} is outside {specifier}: {install}")
        elif name in ALWAYS_LISTED:
            yield Finding("ok", name, f"{installed_version} ({specifier})")


def torch() -> Iterator[Finding]:
    """Report the build of torch, and the devices that it finds."""
    try:
        import lightning  # noqa: F401  (checks that it loads)
        import torch
    except Exception as error:
        yield Finding("!", "torch", f"does not load: {type(error).__name__}: {error}")
        return
    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"
    yield Finding("ok", "build", f"torch for {build}, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Finding("ok", f"gpu {index}", f"{device.name}, {device.total_memory / (1 << 30):.1f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("ok", "gpu", "Apple, by accelerator=mps")
    elif not torch.cuda.device_count():
        gpu_name = _first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
        unusable_gpu = f"torch cannot use this machine's {gpu_name}: see pytorch.org for the build"
        yield Finding("-", "gpu", unusable_gpu if gpu_name else "none: accelerator=cpu")


def wandb() -> Iterator[Finding]:
    """Report whether logger=wandb would log online."""
    mode = os.environ.get("WANDB_MODE")
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host, port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    if mode in ("offline", "dryrun", "disabled"):
        yield Finding("-", "w&b", f"WANDB_MODE={mode}: runs stay on this machine")
    elif not os.environ.get("WANDB_API_KEY") and not _key_in_netrc(host):
        yield Finding("-", "w&b", f"no key for {host}, so runs are offline: wandb login, or WANDB_API_KEY")
    elif os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        yield Finding("ok", "w&b", f"a key for {host}; not tried, because it is reached through a proxy")
    elif _is_reachable(host, port):
        yield Finding("ok", "w&b", f"a key for {host}, which answers")
    else:
        yield Finding("-", "w&b", f"a key, but {host} does not answer, so runs are offline")


def _key_in_netrc(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser()).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _is_reachable(host: str, port: int) -> bool:
    """Return whether a server accepts a connection in time; uses a thread, because a DNS lookup has no timeout."""
    has_connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), NETWORK_TIMEOUT):
            has_connected.set()

    threading.Thread(target=connect, daemon=True).start()
    return has_connected.wait(NETWORK_TIMEOUT)


def slurm() -> Iterator[Finding]:
    """Report whether this process belongs to a SLURM job, and whether jobs can be submitted from here."""
    programs = [name for name in ("sbatch", "srun") if shutil.which(name)]
    if job := os.environ.get("SLURM_JOB_ID"):
        yield Finding("ok", "slurm", f"inside job {job}, task {os.environ.get('SLURM_PROCID', '?')}")
    elif programs:
        yield Finding("ok", "slurm", f"{_first_line(programs[0], '--version') or ''}: {', '.join(programs)}")
    else:
        yield Finding("-", "slurm", "no sbatch or srun on the PATH")


def data() -> Iterator[Finding]:
    """Report which data sets are on this machine, and which ones read the user's own files."""
    try:
        from leyden import data  # its classes load torch
    except Exception as error:
        yield Finding("!", "data", f"leyden.data does not load: {type(error).__name__}: {error}")
        return
    installed, of_users = [], []
    for file in choices(CONF / "data"):
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not node:  # data=none
            continue
        kind = getattr(data, node["_target_"].rpartition(".")[2])
        if hasattr(kind, "remotes"):
            yield _downloads(file.stem, Files(kind.folder, kind.remotes, getattr(kind, "installed", ())))
        elif "???" in node.values():
            of_users.append(file.stem)
        elif not any(find_missing("data", node)):
            installed.append(file.stem)
    yield Finding("ok", "data", f"{', '.join(installed)}: in installed packages")
    yield Finding("ok", "data", f"{', '.join(of_users)}: read your own files")


def _downloads(choice: str, files: Files) -> Finding:
    paths = [path for remote in files.remotes if (path := files.find(remote))]
    if len(paths) == len(files.remotes):
        return Finding("ok", "data", f"{choice}: {', '.join(sorted({str(path.parent) for path in paths}))}")
    return Finding("-", "data", f"{choice}: downloaded to {data_root() / files.folder} at its first use")


def extras() -> Iterator[Finding]:
    """Report the optional packages."""
    for package in EXTRAS:
        installed_version = _version(package.name)
        line = installed_version or f"for {package.choices}: pip install {package.requirement}"
        yield Finding("ok" if installed_version else "-", package.name, line)


def disk() -> Iterator[Finding]:
    """Report whether runs and data can be written, and the free space."""
    for name, folder in (("runs", runs_root().resolve()), ("data dir", data_root())):
        existing_folder = next(path for path in (folder, *folder.parents) if path.is_dir())
        free_bytes = shutil.disk_usage(existing_folder).free
        try:
            with tempfile.TemporaryFile(dir=existing_folder, buffering=0) as file:
                file.write(b"leyden")
                os.fsync(file.fileno())
        except OSError as error:
            yield Finding("!", name, f"{folder} cannot be written: {error.strerror}")
        else:
            yield Finding(
                "!" if free_bytes < LOW_DISK_BYTES else "ok", name, f"{folder}: {free_bytes / (1 << 30):.1f} GiB free"
            )


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in requires("leyden") or []]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _first_line(*command: str) -> str | None:
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.partition("\n")[0]
