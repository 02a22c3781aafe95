"""`leyden doctor`: a line for each thing that leyden uses: ok, `-` optional and absent, `!` to be mended."""

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

from packaging.requirements import Requirement
from rich.text import Text

from leyden import __version__
from leyden.commands.arguments import Arguments
from leyden.console import console
from leyden.data.download import Files, data_root
from leyden.distributed.world import cores
from leyden.run.directory import runs_root

COLORS = {"ok": "green", "-": "dim", "!": "bold red"}
MALICIOUS = {("lightning", "2.6.2"), ("lightning", "2.6.3")}  # uploaded by thieves of credentials, and withdrawn
ALWAYS_LISTED = ("torch", "lightning", "hydra-core", "wandb")  # their versions have a line even when all is well
EXTRAS = {"tensorboard": "logger=tensorboard", "timm": "model=timm"}  # what each is for
NETWORK_WAIT = 2.0  # seconds
LOW_DISK = 1 << 30  # bytes


class Finding(NamedTuple):
    """One line."""

    mark: str
    name: str
    text: str


def main(arguments: list[str]) -> int:
    """Look around; return 1 if something that is needed is broken."""
    Arguments("doctor", "Say what this machine has of all that leyden can use.").parse_args(arguments)
    broken = 0
    for check in (python, packages, torch, wandb, slurm, data, extras, disk):
        for mark, name, text in check():
            broken += mark == "!"
            console.print(Text.assemble((f"{mark:2}", COLORS[mark]), f" {name:10} {text}"))
    if broken:
        console.print(f"\n{broken} to mend")
    return 1 if broken else 0


def python() -> Iterator[Finding]:
    """The interpreter, the processor and its threads."""
    yield Finding("ok", "python", f"{platform.python_version()} at {sys.executable}")
    threads = os.environ.get("OMP_NUM_THREADS")
    text = f"OMP_NUM_THREADS={threads}" if threads else "one thread per core and process"
    yield Finding("ok", "cpu", f"{cores()} cores; {text}")


def packages() -> Iterator[Finding]:
    """Everything that leyden requires, against the range that it is tested with."""
    yield Finding("ok", "leyden", f"{__version__} at {Path(__file__).parents[1]}")
    for requirement in _requirements():
        if requirement.marker is None:
            yield from _check_requirement(requirement)


def _check_requirement(requirement: Requirement) -> Iterator[Finding]:
    name = requirement.name
    specifier = str(requirement.specifier)
    installed = _version(name)
    if installed is None:
        yield Finding("!", name, f"is not installed: pip install '{name}{specifier}'")
    elif (name, installed) in MALICIOUS:
        text = f"{installed} steals credentials: pip install '{name}{specifier}', then change every key that was here"
        yield Finding("!", name, text)
    elif not requirement.specifier.contains(installed, prereleases=True):
        yield Finding("!", name, f"{installed} is outside {specifier}: pip install '{name}{specifier}'")
    elif name in ALWAYS_LISTED:
        yield Finding("ok", name, f"{installed} ({specifier})")


def torch() -> Iterator[Finding]:
    """What torch was built for and what it sees."""
    try:
        import lightning  # noqa: F401  (shows that it loads)
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
        nvidia = _first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
        mend = f"torch cannot use this machine's {nvidia}: see pytorch.org for the build"
        yield Finding("-", "gpu", mend if nvidia else "none: accelerator=cpu")


def wandb() -> Iterator[Finding]:
    """Whether logger=wandb would be online."""
    mode = os.environ.get("WANDB_MODE")
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host, port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    if mode in ("offline", "dryrun", "disabled"):
        yield Finding("-", "w&b", f"WANDB_MODE={mode}: runs stay on this machine")
    elif not os.environ.get("WANDB_API_KEY") and not _key_in_netrc(host):
        yield Finding("-", "w&b", f"no key for {host}, so offline: wandb login, or WANDB_API_KEY")
    elif os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        yield Finding("ok", "w&b", f"a key for {host}; reached through a proxy, not tried")
    elif _answers(host, port):
        yield Finding("ok", "w&b", f"a key for {host}, which answers")
    else:
        yield Finding("-", "w&b", f"a key, but {host} does not answer: runs would be offline")


def _key_in_netrc(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser()).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _answers(host: str, port: int) -> bool:
    """Tell whether a server takes a connection soon; in a thread, as the name service knows no time limit."""
    answered: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), NETWORK_WAIT).close()
            answered.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(NETWORK_WAIT)
    return bool(answered)


def slurm() -> Iterator[Finding]:
    """Whether jobs can be submitted from here, or this is one."""
    programs = [name for name in ("sbatch", "srun") if shutil.which(name)]
    job = os.environ.get("SLURM_JOB_ID")
    if job:
        yield Finding("ok", "slurm", f"inside job {job}, task {os.environ.get('SLURM_PROCID', '?')}")
    elif programs:
        yield Finding("ok", "slurm", f"{_first_line(programs[0], '--version') or ''}: {', '.join(programs)}")
    else:
        yield Finding("-", "slurm", "no sbatch or srun on the PATH")


def data() -> Iterator[Finding]:
    """The data sets whose files are here."""
    try:
        from leyden.data.images.cifar import CIFAR10, CIFAR100  # torch
        from leyden.data.images.mnist import MNIST, FashionMNIST
    except Exception as error:
        yield Finding("!", "data", f"leyden.data does not load: {type(error).__name__}: {error}")
        return
    yield Finding("ok", "data", "digits: in scikit-learn")
    root = data_root()
    kinds = {"mnist": MNIST, "fashion_mnist": FashionMNIST, "cifar10": CIFAR10, "cifar100": CIFAR100}
    for choice, kind in kinds.items():
        files = Files(kind.folder, kind.remotes, kind.installed)
        paths = [files.find(remote) for remote in files.remotes]
        if all(paths):
            yield Finding("ok", "data", f"{choice}: {', '.join(sorted({str(path.parent) for path in paths if path}))}")
        else:
            yield Finding("-", "data", f"{choice}: downloaded to {root / kind.folder} at its first use")


def extras() -> Iterator[Finding]:
    """The optional packages."""
    for requirement in _requirements():
        if extra := next((name for name in EXTRAS if f'"{name}"' in str(requirement.marker)), None):
            installed = _version(requirement.name)
            line = installed or f"for {EXTRAS[extra]}: pip install 'leyden[{extra}]'"
            yield Finding("ok" if installed else "-", requirement.name, line)


def disk() -> Iterator[Finding]:
    """Whether runs and data can be written, and how much."""
    for name, folder in (("runs", runs_root().resolve()), ("data dir", data_root())):
        existing_folder = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(existing_folder).free
        text = f"{folder}: {free / (1 << 30):.1f} GiB free"
        try:
            with tempfile.TemporaryFile(dir=existing_folder) as file:
                file.write(b"leyden")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            yield Finding("!", name, f"{folder} cannot be written: {error.strerror}")
        else:
            yield Finding("!" if free < LOW_DISK else "ok", name, text)


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
