"""A run that ends without raising anything (a full disk, `sys.exit`, `os._exit`) leaves the reason."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from leyden import checkpoints
from leyden.cli import main
from leyden.run.find import list_runs
from support.processes import cli, forked
from support.training import SMALL, at_step, trouble

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def small_disk(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    disk = workdir / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    monkeypatch.setenv("LEYDEN_RUNS", str(disk))
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> None:
    """Leave not a byte."""
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def start_on_full(disk: Path, step: int, *overrides: str) -> int:
    at_step(step, lambda: fill(disk))
    return main(["train", *SMALL, "trainer.log_every_n_steps=1", *overrides])


# within an epoch, at its end, at the end of training
@pytest.mark.parametrize("step", [1, pytest.param(4, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_to_the_last_byte(small_disk: Path, capfd: pytest.CaptureFixture, step: int):
    assert forked(start_on_full, small_disk, step) == 1
    error = capfd.readouterr().err
    run = list_runs()[0]
    assert "No space left on device: " in error or "no room for step-" in error
    assert f"leyden resume {run.path if 'no room' in error else run.name}" in error
    assert error.count("\n") == 1
    assert "Errno" not in error
    assert run.status["state"] == "failed"
    assert run.status["reason"] in error
    assert run.status["exit_code"] == 1
    assert all(checkpoints.problem(path) is None for path in run.checkpoints())
    (small_disk / "filler").unlink()
    assert cli("resume", "last") == 0
    assert not (run.path / ".reserve").exists()


def test_a_disk_that_is_full_for_ranks(small_disk: Path, capfd: pytest.CaptureFixture):
    assert forked(partial(trouble, rank=0, step=2), lambda: fill(small_disk), "trainer.log_every_n_steps=1") == 1
    error = capfd.readouterr().err
    assert "No space left on device: " in error or "no room for step-" in error
    assert error.count("\n") == 1
    assert list_runs()[0].status["state"] == "failed"


def test_a_full_disk_holds_no_new_run(small_disk: Path, capfd: pytest.CaptureFixture):
    fill(small_disk)
    assert cli("train", *SMALL) == 2
    error = capfd.readouterr().err
    assert "the run directory cannot be written: No space left on device" in error
    assert error.count("\n") == 1
    assert not list_runs()


def exit_at(step: int, act: object, *arguments: str) -> int:
    at_step(step, act)
    return main(["train", *SMALL, *arguments])


@pytest.mark.parametrize(
    ("act", "code", "told"),
    [
        (lambda: os._exit(3), 3, "ended by os._exit(3) at "),
        (lambda: os._exit(0), 0, "ended by os._exit(0) at "),
        (lambda: sys.exit(3), 3, "ended by sys.exit(3) at "),
    ],
    ids=["os._exit(3)", "os._exit(0)", "sys.exit(3)"],
)
def test_a_run_that_exits_says_so(workdir: Path, capfd: pytest.CaptureFixture, act, code: int, told: str):
    assert forked(exit_at, 5, act) == code
    assert f"leyden: {told}" in capfd.readouterr().err
    status = list_runs()[0].status
    assert status["state"] == "failed"
    assert status["reason"].startswith(told)
    assert "test_exits.py:" in status["reason"]
    assert status["exit_code"] == (code or 1)
    assert cli("resume", "last") == 0


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_exits_says_so(workdir: Path, capfd: pytest.CaptureFixture, rank: int):
    assert forked(partial(trouble, rank=rank), lambda: os._exit(3)) == 3
    assert f"leyden: rank {rank} of 2 failed: ended by os._exit(3) at " in capfd.readouterr().err
    status = list_runs()[0].status
    assert (status["state"], status["exit_code"]) == ("failed", 3)


def exit_without_a_word() -> None:
    """As C code does, which no Python sees."""
    ctypes.CDLL(None)._exit(3)


def test_a_rank_that_c_code_ends_says_so(workdir: Path, capfd: pytest.CaptureFixture):
    assert forked(trouble, exit_without_a_word) == 3
    assert "rank 1 of 2 failed: exited with code 3 and left no error message" in capfd.readouterr().err
    assert list_runs()[0].status["exit_code"] == 3


@pytest.mark.parametrize(
    ("act", "told"), [(lambda: os._exit(3), "ended by os._exit(3)"), (exit_without_a_word, "exited with code 3")]
)
def test_a_job_that_exits_is_not_tried_again(workdir: Path, capfd: pytest.CaptureFixture, act, told: str):
    tries = workdir / "tries"

    def count() -> None:
        with tries.open("a") as file:
            file.write("x")
        act()

    def sweep() -> int:
        at_step(5, count)
        return main(["train", "-m", *SMALL, "seed=0"])

    assert forked(sweep) == 1
    assert told in capfd.readouterr().err
    assert tries.read_text() == "x"
    status = list_runs()[0].status
    assert (status["state"], status["exit_code"]) == ("failed", 3)
