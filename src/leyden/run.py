"""The run directory: created once, locked by whoever works in it, never half written.

config.yaml     the resolved config: enough to start this run again
manifest.json   command line, overrides, versions, git commit, hardware, data fingerprints, parent run
status.json     state, step, heartbeat, exit code and reason
metrics.jsonl   every logged scalar; checkpoints/  figures/  log.txt  source.diff
"""

import contextlib
import fcntl
import itertools
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Literal

import yaml

from leyden import __version__, git, records
from leyden.check import Composition
from leyden.errors import UserError

State = Literal["created", "running", "interrupted", "preempted", "pruned", "failed", "finished"]
PACKAGES = ("torch", "lightning", "hydra-core", "torchmetrics", "wandb", "numpy")
PARTS = ("data", "model")  # what every frozen config describes
RESERVE, RESERVED = ".reserve", 64 << 10  # a file that makes room for the last status, and its bytes
HEARTBEAT_EVERY = 10.0  # seconds
GIT_TIMEOUT = 20.0  # seconds
imported: dict[Path, tuple[dict | None, bytes]] = {}  # the git state of folders of which jobs import a copy, then made
typed: list[str] = []  # the command's arguments, while Hydra is given others


def runs_root() -> Path:
    """The folder that runs are made in: $LEYDEN_RUNS, else ./runs."""
    return Path(os.environ.get("LEYDEN_RUNS", "runs"))


def stamp() -> str:
    """A new run's own name: its time and four random hex digits."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file with `content` so that a reader, or a crash, sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file
        raise


def unused(path: Path) -> Path:
    """Return the path, or with -2, -3, … in its name the first one that is free."""
    tried = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(p for p in itertools.chain([path], tried) if not p.exists())


class Run:
    """A run directory. `Run.create` makes one, `Run.find` opens one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_new = False  # whether this process made the directory
        self._status: dict | None = None

    @classmethod
    def create(
        cls, composition: Composition, path: Path | None = None, parent: dict | None = None, job: int | None = None
    ) -> "Run":
        """Make a new run directory holding the frozen config and where it came from.

        `parent` says which run this one starts from, as {"rerun": path} or {"forked": path}; `job` is its number in a
        sweep.
        """
        path = path or _new_path(composition.config["name"])
        run = cls(path.resolve())
        if (run.path / "config.yaml").exists():
            raise UserError(f"{path} holds a run already: leyden resume {path}, or choose another hydra.run.dir")
        run.is_new = not run.path.exists()
        try:
            (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            write_atomically(run.path / "config.yaml", yaml.safe_dump(composition.config, sort_keys=False))
            run._write("manifest.json", run._describe(composition, parent or {}) | {"job": job})
            run.set_status("created")
        except OSError as error:
            if run.is_new:
                run.discard()
            raise UserError(f"{path}: the run directory cannot be written: {error.strerror}") from error
        return run

    @classmethod
    def find(cls, name: str) -> "Run":
        """Open a run by its path, by `last`, or by a unique part of its name.

        Raises:
            UserError: when there is none, or a link in it leads elsewhere.
        """
        run = cls._find(name)
        refuse_links(run.path)
        return run

    @classmethod
    def _find(cls, name: str) -> "Run":
        if (Path(name) / "config.yaml").is_file():
            return cls(Path(name).resolve())
        runs = list_runs()
        if not runs and not (Path(name) / "checkpoints").is_dir():
            raise UserError(f"{name}: there are no runs in {runs_root()}; leyden train makes one, LEYDEN_RUNS moves it")
        if name == "last":
            return runs[-1]
        name = name.rstrip("/")
        exact = [run for run in runs if name in run.name.split("/")]
        found = exact or [run for run in runs if name in run.name]
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(run.name for run in found[-3:])
            raise UserError(f"{name} is part of the names of {len(found)} runs: {shown}; write more of it")
        if (Path(name) / "multirun.yaml").is_file():
            raise UserError(f"{name} is a sweep: name one of its runs, {name}/0")
        if (Path(name) / "checkpoints").is_dir():
            raise UserError(f"{name}/config.yaml is missing: restore it, its checkpoints hold a copy")
        raise UserError(f"{name}: no such run in {runs_root()}; leyden ls shows them, the last is {runs[-1].name}")

    @property
    def name(self) -> str:
        """The path below the runs folder."""
        return str(self.path).removeprefix(f"{_resolved(os.getcwd(), str(runs_root()))}/")  # noqa: PTH109 - of thousands

    @property
    def sweep(self) -> str | None:
        """The name of the multirun that this run is a job of: its folder's."""
        return self.path.parent.name if (self.path.parent / "multirun.yaml").exists() else None

    @property
    def config(self) -> dict:
        """The frozen config."""
        try:
            config = yaml.safe_load((self.path / "config.yaml").read_bytes())
        except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
            raise UserError(f"{self.path}/config.yaml cannot be read: {reason}") from error
        if not isinstance(config, dict) or not all(isinstance(config.get(part), dict) for part in PARTS):
            raise UserError(f"{self.path}/config.yaml does not hold the config of a run: {' and '.join(PARTS)}")
        return config

    @property
    def manifest(self) -> dict:
        """Where the run came from."""
        return records.read(self.path / "manifest.json")

    def update_manifest(self, **facts: Any) -> None:
        """Add facts to the manifest."""
        self._write("manifest.json", {**self.manifest, **facts})

    @property
    def status(self) -> dict:
        """The last status written; a run whose process died without a word is said to be `killed`."""
        status = records.read(self.path / "status.json")
        if status.get("state") == "running" and not self.is_locked():
            status["state"] = "killed"
        return status

    def set_status(self, state: State, **facts: Any) -> None:
        """Write the state with a heartbeat, keeping earlier facts; how a run ended is written on a full disk too."""
        if state != "running":
            (self.path / RESERVE).unlink(missing_ok=True)
        if self._status is None:
            self._status = records.read(self.path / "status.json", is_new=True)
        self._status |= {"state": state, "heartbeat": time.time(), **facts}
        self._write("status.json", self._status)

    def forget_results(self) -> None:
        """Drop what the status says of an earlier end: the metrics of a run that goes on would be old ones."""
        self._status = records.read(self.path / "status.json", is_new=True)
        for key in ("metrics", "checkpoint", "last_metrics", "expect", "reason", "exit_code"):
            self._status.pop(key, None)

    def reserve(self) -> None:
        """Take some room on the disk, which the status that says how the run ended will need."""
        (self.path / RESERVE).write_bytes(os.urandom(RESERVED))  # zeros take no room on file systems that compress

    def note(self, **facts: Any) -> None:
        """Add facts to the status, whatever the state is; a full disk must not hide why a run ended."""
        with contextlib.suppress(OSError):
            status = records.read(self.path / "status.json", is_new=True)
            self.set_status(status.get("state", "created"), **facts)

    def discard(self) -> None:
        """Remove a directory that this process has just made, and the folder of its name if nothing else is in it."""
        assert self.is_new, "only what this process made is removed"
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.parent.parent == runs_root().resolve():
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def checkpoints(self) -> list[Path]:
        """The saved checkpoints, the latest step first."""
        return sorted((self.path / "checkpoints").glob("step-*.ckpt"), reverse=True)

    def best_checkpoint(self) -> Path | None:
        """The checkpoint that `best.ckpt` links to, if there is one."""
        link = self.path / "checkpoints" / "best.ckpt"
        return link.resolve() if link.exists() else None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Own the run while in this block.

        Raises:
            UserError: when another live process owns it.
        """
        with held(self.path / ".lock", self.name):
            yield

    def is_locked(self) -> bool:
        """Tell whether a live process owns the run."""
        return is_held(self.path / ".lock")

    def _write(self, name: str, data: dict) -> None:
        records.set_aside(self.path / name)
        write_atomically(self.path / name, json.dumps(data, indent=2) + "\n")

    def _describe(self, composition: Composition, parent: dict) -> dict:
        return {
            "id": secrets.token_hex(8),  # its checkpoints hold it too, so that another run's are told from them
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": shlex.join(["leyden", *(typed or sys.argv[1:])]),
            "directory": str(Path.cwd()),
            "overrides": composition.overrides,
            "choices": composition.choices,
            "raw": composition.raw,  # the config with its ${…}, so that a rerun's overrides reach all they should
            "parent": parent,
            "leyden": __version__,
            "git": self._keep_git(),
            "packages": {name: _version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "host": {"name": platform.node(), "system": platform.platform(), "cores": os.cpu_count()},
        }

    def _keep_git(self) -> dict | None:
        """The commit of the working directory; what differs from it is saved as source.diff."""
        facts, diff = imported.get(Path.cwd()) or git_state()
        if diff:
            write_atomically(self.path / "source.diff", diff)
        return facts


def _new_path(name: str) -> Path:
    """Return where a new run of a name belongs, which is in the runs folder whatever the name is."""
    root, path = runs_root().absolute(), runs_root() / name / stamp()
    if not Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath(root)) or ".." in Path(name).parts:
        raise UserError(f"name={name!r} leads out of the runs folder {root}: take another")
    return path


def git_state() -> tuple[dict | None, bytes]:
    """Return the commit of the working directory, and what differs from it."""
    commit = git.ask("rev-parse", "HEAD", timeout=GIT_TIMEOUT)
    if commit is None:
        return None, b""
    diff = git.diff(GIT_TIMEOUT)
    listed = git.ask("ls-files", "--others", "--exclude-standard", timeout=GIT_TIMEOUT) or b""
    untracked = listed.decode("utf-8", "replace").splitlines()
    return {"commit": commit.decode().strip(), "dirty": bool(diff), "untracked": untracked[:100]}, diff


def refuse_links(folder: Path) -> None:
    """Refuse a run's or a sweep's folder of which a part lies elsewhere: what leyden writes there would end there.

    Copies of the project's code, `code/` and `code-2/`, have links to what git ignores.

    Raises:
        UserError: which names the link.
    """
    for link in _links(folder):
        if not link.resolve().is_relative_to(folder) and not re.match(r"code(-\d+)?/", f"{link.relative_to(folder)}"):
            raise UserError(f"{link} is a link to {link.readlink()}: put what is there in its place, or remove it")


def _links(folder: str | Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir():
                yield from _links(entry.path)


def sweep_folder(name: str) -> Path | None:
    """Return the folder of the multirun that is meant by its path, or by its folder's own name; None if it is none."""
    if (Path(name) / "multirun.yaml").is_file():
        return Path(name).resolve()
    found = [path.parent for depth in ("*", "*/*") for path in runs_root().glob(f"{depth}/multirun.yaml")]
    name = name.rstrip("/")
    named = [folder for folder in found if name in (folder.name, Run(folder.resolve()).name)]
    if not named and name not in ("", "last"):
        named = [folder for folder in found if name in Run(folder.resolve()).name]
    others = [run for run in list_runs() if name in run.name and run.path.parent not in [f.resolve() for f in named]]
    return named[0].resolve() if len(named) == 1 and not others else None


def list_runs() -> list[Run]:
    """All runs below the runs folder, the oldest first; a multirun's jobs are runs too."""
    root = _resolved(os.getcwd(), str(runs_root()))  # noqa: PTH109
    found = [config for name in _folders(root) for folder in _folders(name) for config in _configs(folder)]
    return [Run(Path(config).parent) for _, config in sorted(found)]


def _configs(folder: str) -> list[tuple[int, str]]:
    """The time and path of a run's config, or of those below: what stands in a run's own folders is no run."""
    found = _config(folder)
    return [found] if found else [config for below in _folders(folder) if (config := _config(below))]


def _config(folder: str) -> tuple[int, str] | None:
    try:
        return os.stat(f"{folder}/config.yaml").st_mtime_ns, f"{folder}/config.yaml"  # noqa: PTH116
    except OSError:
        return None


def _folders(path: str) -> list[str]:
    """The folders in a folder, links resolved as a run's path is."""
    try:
        with os.scandir(path) as entries:
            return [os.path.realpath(e.path) if e.is_symlink() else e.path for e in entries if e.is_dir()]
    except OSError:  # not there, or somebody else's
        return []


@cache
def _resolved(folder: str, path: str) -> str:
    """Resolve a path that may be relative to a folder."""
    return str(Path(folder, path).resolve())


@contextlib.contextmanager
def held(path: Path, name: str) -> Iterator[None]:
    """Hold a lock file while in this block; it says by whom it is held.

    Raises:
        UserError: when another live process holds it.
    """
    with path.open("a+") as file:
        if not _locks(file):
            file.seek(0)
            raise UserError(f"{name} is in use by {file.read().strip() or 'another process'}")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def is_held(path: Path) -> bool:
    """Tell whether a live process holds a lock file."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _locks(file: IO) -> bool:
    """Take the lock; who only looks whether it is held lets go within a second."""
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        except OSError as error:
            raise UserError(
                f"{file.name} cannot be locked: {error.strerror}; runs need a file system with locks"
            ) from error
        else:
            return True
    return False


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
