"""The run directory, which is created once and is locked by the process that works in it.

config.yaml     the resolved config: enough to start this run again
manifest.json   command line, overrides, versions, git commit, hardware, data fingerprints, parent run
status.json     state, step, heartbeat, exit code and reason
init.*          the weights to start from, if `init` names some; a rerun copies them
metrics.jsonl   every logged scalar; checkpoints/  figures/  log.txt  source.diff
"""

import contextlib
import os
import platform
import secrets
import shlex
import shutil
import sys
import time
from contextlib import AbstractContextManager
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import yaml

from leyden import __version__, git
from leyden.config.composition import Composition
from leyden.config.defaults import describe
from leyden.config.locations import project_root
from leyden.config.run_config import RunConfig, check_types
from leyden.config.yaml_files import load_untrusted
from leyden.errors import UserError
from leyden.files import file_lock, is_locked, write_atomically
from leyden.run import records
from leyden.run.initial_weights import copy_weights

State = Literal["created", "running", "interrupted", "preempted", "pruned", "failed", "finished"]
PACKAGES = ("torch", "lightning", "hydra-core", "torchmetrics", "wandb", "numpy")
RESERVE, RESERVE_BYTES = ".reserve", 64 << 10  # a file that keeps room on the disk for the last status
SCHEMA_FILE = "schema.json"  # describes a sample and its answer; every checkpoint holds a copy
HEARTBEAT_EVERY = 10.0  # seconds
cli_arguments: list[str] = []  # what the user typed, while Hydra gets a rewritten argv


def runs_root() -> Path:
    """Return the folder of all runs: $LEYDEN_RUNS, else runs/ in the project's folder."""
    if folder := os.environ.get("LEYDEN_RUNS"):
        return Path(folder)
    root = project_root()
    return Path("runs") if root == Path.cwd() else root / "runs"


def new_run_id() -> str:
    """Return the name of a new run: the time and four random hex digits."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def name_below_runs(path: Path) -> str:
    """Return the name of a run or sweep: its path below the runs folder."""
    # pathlib would be too slow for a list of thousands of runs
    return str(path).removeprefix(f"{absolute_path(os.getcwd(), str(runs_root()))}/")  # noqa: PTH109


class Run:
    """A run directory. `Run.create` makes one, and `find_run` opens one by its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_new = False  # whether this process made the directory
        self._status: dict[str, Any] | None = None

    @classmethod
    def create(
        cls, composition: Composition, path: Path | None = None, parent: dict[str, Any] | None = None, **facts: Any
    ) -> "Run":
        """Make a new run directory with the frozen config and a manifest of where it came from.

        The weights that `init` names in a frozen config are copied into it. `parent` names the run that this one starts
        from, as {"rerun": path} or {"forked": path}; `facts` are further entries of the manifest, such as the position
        of a job in its sweep.

        Raises:
            UserError: if the directory holds a run already, or cannot be written, or the weights have changed.
        """
        path = path or _new_path(composition.config["name"])
        run = cls(path.resolve())
        if (run.path / "config.yaml").exists():
            raise UserError(f"{path} holds a run already: leyden resume {path}, or choose another hydra.run.dir")
        run.is_new = not run.path.exists()
        try:
            (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            if init := composition.config.get("init"):
                copy_weights(init, run.path, map(Path, (parent or {}).values()))
            write_atomically(run.path / "config.yaml", yaml.safe_dump(composition.config, sort_keys=False))
            records.write(run.path / "manifest.json", run._describe(composition, parent or {}) | {"job": None, **facts})
            run.set_status("created", tags=composition.config.get("tags", []))
        except (OSError, UserError) as error:
            if run.is_new:
                run.discard()
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: the run directory cannot be written: {error.strerror}") from error
        return run

    @property
    def name(self) -> str:
        """The path below the runs folder."""
        return name_below_runs(self.path)

    @property
    def sweep(self) -> str | None:
        """The name of the sweep that this run is a job of (its folder's name), or None."""
        return self.path.parent.name if (self.path.parent / "multirun.yaml").exists() else None

    @property
    def config(self) -> RunConfig:
        """The frozen config.

        Raises:
            UserError: if its file cannot be read, or a key in it is missing or has a wrong type.
        """
        path = self.path / "config.yaml"
        return check_types(load_untrusted(path, lambda path: yaml.safe_load(path.read_bytes())), path)

    def composition(self) -> Composition:
        """Return the frozen config for the check before a resume; all keys that the run was made with are allowed.

        Raises:
            UserError: if its file cannot be read, or a key in it is missing or has a wrong type.
        """
        config = self.config
        raw = self.manifest.get("raw") or {**config}
        return Composition(raw, config, choices=dict.fromkeys(raw))

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest, which tells where the run came from."""
        return records.read(self.path / "manifest.json")

    def update_manifest(self, **facts: Any) -> None:
        """Add facts to the manifest."""
        records.write(self.path / "manifest.json", {**self.manifest, **facts})

    @property
    def status(self) -> dict[str, Any]:
        """The last status that was written; the state is `killed` if the run's process died without writing one."""
        status = records.read(self.path / "status.json")
        if status.get("state") == "running" and not self.is_locked():
            status["state"] = "killed"
        return status

    def set_status(self, state: State, **facts: Any) -> None:
        """Write the state, a heartbeat and facts, keeping earlier facts; the last status fits even on a full disk."""
        if state != "running":
            (self.path / RESERVE).unlink(missing_ok=True)
        if self._status is None:
            self._status = records.read(self.path / "status.json", is_new=True)
        self._status |= {"state": state, "heartbeat": time.time(), **facts}
        records.write(self.path / "status.json", self._status)

    def forget_results(self) -> None:
        """Remove the results of an earlier end from the status, because the run continues."""
        self._status = records.read(self.path / "status.json", is_new=True)
        for key in ("metrics", "checkpoint", "last_metrics", "expect", "reason", "exit_code"):
            self._status.pop(key, None)

    def reserve(self) -> None:
        """Reserve room on the disk for the status that says how the run ended."""
        # not zeros, which would take no room on a file system that compresses
        (self.path / RESERVE).write_bytes(os.urandom(RESERVE_BYTES))

    def note(self, **facts: Any) -> None:
        """Add facts to the status without changing its state; a disk error must not hide why a run ended."""
        with contextlib.suppress(OSError):
            status = records.read(self.path / "status.json", is_new=True)
            self.set_status(status.get("state", "created"), **facts)

    def discard(self) -> None:
        """Remove a directory that this process has just made, and the folder above it if that is then empty."""
        assert self.is_new, "a process removes only directories that it made"
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.parent.parent == runs_root().resolve():
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def checkpoints(self) -> list[Path]:
        """Return the saved checkpoints, the latest step first."""
        return sorted((self.path / "checkpoints").glob("step-*.ckpt"), reverse=True)

    def best_checkpoint(self) -> Path | None:
        """Return the checkpoint that `best.ckpt` links to, or None."""
        link = self.path / "checkpoints" / "best.ckpt"
        return link.resolve() if link.exists() else None

    def lock(self) -> AbstractContextManager[None]:
        """Hold the lock of the run while in this block.

        Raises:
            UserError: if another live process holds it.
        """
        return file_lock(self.path / ".lock", self.name)

    def is_locked(self) -> bool:
        """Return whether a live process holds the lock of the run."""
        return is_locked(self.path / ".lock")

    def _describe(self, composition: Composition, parent: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": secrets.token_hex(8),  # stored in checkpoints too, so that a checkpoint of another run is recognized
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": shlex.join(["leyden", *(cli_arguments or sys.argv[1:])]),
            "directory": str(Path.cwd()),
            "overrides": composition.overrides,
            "choices": composition.choices,
            "raw": composition.raw,  # with its ${…}, so that a rerun's override of a key reaches every reader of it
            "defaults": describe(composition.defaults),
            "parent": parent,
            "leyden": __version__,
            "git": self._record_git(),
            "packages": {name: _version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "host": {"name": platform.node(), "system": platform.platform(), "cores": os.cpu_count()},
        }

    def _record_git(self) -> dict[str, Any] | None:
        """Return the commit of the project's folder, and save the diff against it as source.diff."""
        root = project_root()
        facts, diff = git.states.get(root) or git.state(root)
        if diff:
            write_atomically(self.path / "source.diff", diff)
        return facts


def step_of(checkpoint: Path) -> int:
    """Return the step N of a checkpoint `step-N.ckpt`."""
    return int(checkpoint.stem.removeprefix("step-"))


def _new_path(name: str) -> Path:
    """Return the path of a new run; refuse a name that leads out of the runs folder."""
    root, path = runs_root().absolute(), runs_root() / name / new_run_id()
    if not Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath(root)) or ".." in Path(name).parts:
        raise UserError(f"name={name!r} leads out of the runs folder {root}: take another name")
    return path


@cache
def absolute_path(folder: str, path: str) -> str:
    """Return the absolute path, with links resolved, of a path relative to `folder`."""
    return str(Path(folder, path).resolve())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
