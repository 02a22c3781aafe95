"""Imports Lightning once for the whole session; runs are trained in forked children.

Slow imports are made in functions, since pytest-xdist's controller reads this file and runs no test.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("LEYDEN_RUNS", None)
if "LEYDEN_TEST_GPU" not in os.environ:  # tests fork, and compare bits; only tests/distributed/test_gpu.py needs a GPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_ERROR_REPORTING"] = "false"

import pytest

from support import file_server as file_servers
from support import wandb_server

if TYPE_CHECKING:
    from leyden.run.directory import Run

SLOW_FIXTURES = {"cluster", "machines"}


@pytest.hookimpl(tryfirst=True)  # before pytest reads -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what starts a SLURM cluster or cuts the cable between two machines."""
    for item in items:
        if SLOW_FIXTURES & {*getattr(item, "fixturenames", ())}:
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def trained_before(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Train once in this process, so that forked children inherit its imports and caches."""
    import torch

    from leyden.cli import main
    from leyden.launch import children

    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))  # without a leyden.yaml
    torch.set_num_threads(1)
    children.START_METHOD = "fork"  # ranks are forked from here, where lightning is loaded
    importlib.import_module("leyden.sweep.start")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("before"))
        assert main(["train", "data.limit=64", "model.net.width=2", "trainer.max_epochs=1"]) == 0


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, which will hold the runs/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LEYDEN_RUNS", raising=False)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make models draw no figures: they take half the time of a short run, and the test is about something else."""
    from leyden.models.model import Model

    monkeypatch.setattr(Model, "log_figure", lambda model, name, draw: None)


@pytest.fixture
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a hostile program leaves a file if it is started."""
    return tmp_path_factory.mktemp("canary")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user who never logged in to W&B, in an empty home."""
    import wandb

    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield home
    wandb.teardown()
    # Later tests fork from this process: a thread that held a lock would leave it locked in the child for ever.
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("wandb")]


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[wandb_server.Server]:
    """A W&B server, and the user's API key for it."""
    with wandb_server.serve() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", wandb_server.KEY)
        yield server


@pytest.fixture
def file_server() -> Iterator[tuple[str, type[file_servers.Server]]]:
    """An HTTP server on this machine: its address, and the handler with files and requests."""
    with file_servers.serve() as server:
        yield server


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of `OVERRIDES` that was never interrupted."""
    from leyden.run.find import list_runs
    from support.processes import cli
    from support.training import OVERRIDES

    folder = tmp_path_factory.mktemp("uninterrupted")
    working_directory = Path.cwd()
    os.chdir(folder)
    try:
        assert cli("train", *OVERRIDES) == 0
        return list_runs()[0]
    finally:
        os.chdir(working_directory)
