"""Imports Lightning once for the whole session; runs are trained in forked children."""

import importlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("LEYDEN_RUNS", None)
if "LEYDEN_TEST_GPU" not in os.environ:  # tests fork, and compare bits; only tests/distributed/test_gpu.py needs a GPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_ERROR_REPORTING"] = "false"

import pytest
import torch

from leyden.launch import children
from leyden.run.directory import Run
from leyden.run.find import list_runs
from support import file_server as file_servers
from support import wandb_server
from support.processes import cli
from support.training import OVERRIDES

torch.set_num_threads(1)
children.START_METHOD = "fork"  # ranks are forked from here, where lightning is loaded


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests so that each worker's share of the list begins with the slow tests of some files."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    slow: dict[Path, list[pytest.Item]] = {}
    fast = []
    for item in reversed(items):
        if item.get_closest_marker("slow"):
            slow.setdefault(item.path, []).append(item)
        else:
            fast.append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for number, tests in enumerate(slow.values()):
        shares[number % workers] += tests
    size = -(-len(items) // workers)
    for share in shares:
        while len(share) < size and fast:
            share.append(fast.pop())
    items[:] = [item for share in shares for item in share]


@pytest.fixture(scope="session", autouse=True)
def trained_before(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Train once in this process, so that forked children inherit its imports and caches."""
    from leyden.cli import main

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
    folder = tmp_path_factory.mktemp("uninterrupted")
    working_directory = Path.cwd()
    os.chdir(folder)
    try:
        assert cli("train", *OVERRIDES) == 0
        return list_runs()[0]
    finally:
        os.chdir(working_directory)
