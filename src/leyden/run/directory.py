"""The run directory: created once, locked by whoever works in it, never half written.

config.yaml     the resolved config: enough to start this run again
manifest.json   command line, overrides, versions, git commit, hardware, data fingerprints, parent run
status.json     state, step, heartbeat, exit code and reason
metrics.jsonl   every logged scalar; checkpoints/  figures/  log.txt  source.diff
"""

import contextlib
import json
import os
import platform
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
from typing import Any, Literal

import yaml

from leyden import __version__
from leyden.config.check import Composition
from leyden.errors import UserError
from leyden.files import file_lock, is_locked, write_atomically
from leyden.run import git, records

State = Literal["created", "running", "interrupted", "preempted", "pruned", "failed", "finished"]
PACKAGES = ("torch", "lightning", "hydra-core", "torchmetrics", "wandb", "numpy")
PARTS = ("data", "model")  # what every frozen config describes
RESERVE, RESERVED = ".reserve", 64 << 10  # a file that makes room for the last status, and its bytes
HEARTBEAT_EVERY = 10.0  # seconds
typed: list[str] = []  # the command's arguments, while Hydra is given others


def runs_root() -> Path:
    """The folder that runs are made in: $LEYDEN_RUNS, else ./runs."""
    return Path(os.environ.get("LEYDEN_RUNS", "runs"))


def new_run_id() -> str:
    """A new run's own name: its time and four random hex digits."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class Run:
    """A run directory. `Run.create` makes one, `find_run` opens one by its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_new = False  # whether this process made the directory
        self._status: dict | None = None

    @classmethod
    def create(
        cls, composition: Composition, path: Path | None = None, parent: dict | None = None, **facts: Any
    ) -> "Run":
        """Make a new run directory holding the frozen config and where it came from.

        `parent` says which run this one starts from, as {"rerun": path} or {"forked": path}; `facts` are further ones
        for the manifest: what a sweep's job is in the sweep.
        """
        path = path or _new_path(composition.config["name"])
        run = cls(path.resolve())
        if (run.path / "config.yaml").exists():
            raise UserError(f"{path} holds a run already: leyden resume {path}, or choose another hydra.run.dir")
        run.is_new = not run.path.exists()
        try:
            (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            write_atomically(run.path / "config.yaml", yaml.safe_dump(composition.config, sort_keys=False))
            run._write("manifest.json", run._describe(composition, parent or {}) | {"job": None, **facts})
            run.set_status("created")
        except OSError as error:
            if run.is_new:
                run.discard()
            raise UserError(f"{path}: the run directory cannot be written: {error.strerror}") from error
        return run

    @property
    def name(self) -> str:
        """The path below the runs folder."""
        return str(self.path).removeprefix(f"{resolved(os.getcwd(), str(runs_root()))}/")  # noqa: PTH109 - of thousands

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
        with file_lock(self.path / ".lock", self.name):
            yield

    def is_locked(self) -> bool:
        """Tell whether a live process owns the run."""
        return is_locked(self.path / ".lock")

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
        facts, diff = git.states.get(Path.cwd()) or git.state()
        if diff:
            write_atomically(self.path / "source.diff", diff)
        return facts


def _new_path(name: str) -> Path:
    """Return where a new run of a name belongs, which is in the runs folder whatever the name is."""
    root, path = runs_root().absolute(), runs_root() / name / new_run_id()
    if not Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath(root)) or ".." in Path(name).parts:
        raise UserError(f"name={name!r} leads out of the runs folder {root}: take another")
    return path


@cache
def resolved(folder: str, path: str) -> str:
    """Resolve a path that may be relative to a folder."""
    return str(Path(folder, path).resolve())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
