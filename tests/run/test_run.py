"""A run directory loses nothing that was saved, runs nothing untrusted, and has one owner at a time, even on errors."""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from leyden import checkpoints
from leyden.cli import main
from leyden.config.instantiate import instantiate
from leyden.distributed.world import cores
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.run import records
from leyden.run.directory import Run
from leyden.run.find import find_run, find_runs, find_sweep, list_runs
from support.processes import cli, forked
from support.training import SMALL, at_step

pytestmark = pytest.mark.usefixtures("undrawn")


def newest() -> Run:
    return list_runs()[-1]


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "status.json"
    write_atomically(path, "old")
    write, calls = os.fsync, []

    def die(handle: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(handle: int) -> None:
        raise OSError("planned failure")

    def look(handle: int) -> None:
        calls.append(path.read_text())
        write(handle)

    monkeypatch.setattr(os, "fsync", die)  # when every byte is written, but may not yet be on the disk
    assert forked(write_atomically, path, "new") == -signal.SIGKILL
    assert path.read_text() == "old"
    left = set(tmp_path.iterdir())
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="planned failure"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert set(tmp_path.iterdir()) == left  # who fails, and lives, leaves nothing behind
    monkeypatch.setattr(os, "fsync", look)
    write_atomically(path, "new")
    assert (calls, path.read_text()) == (["old"], "new")


def test_a_truncated_checkpoint_is_passed_over(workdir: Path, capfd: pytest.CaptureFixture):
    forked(lambda: (at_step(11, lambda: os.kill(os.getpid(), signal.SIGKILL)), main(["train", *SMALL])))
    last, before = newest().checkpoints()
    with last.open("r+b") as file:
        file.truncate(last.stat().st_size // 2)
    assert cli("resume", "last") == 0
    shown = capfd.readouterr().out
    assert f"{last.name} is not a whole checkpoint" in shown
    assert f"resumed at step {int(before.stem.removeprefix('step-'))}" in shown


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path: Path):
    path = tmp_path / "step-1.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, path)
    assert checkpoints.problem(path) is None
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "damaged" in (checkpoints.problem(path) or "")


def test_a_second_process_is_refused(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *SMALL, "trainer.max_epochs=1") == 0
    run = newest()
    run.set_status("interrupted")
    with run.lock():
        assert cli("resume", "last") == 2
    assert f"in use by process {os.getpid()} on" in capfd.readouterr().err
    assert not run.is_locked()


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_checkpoint_runs_no_code(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *SMALL, "trainer.max_epochs=1") == 0
    run = newest()
    run.set_status("interrupted")
    path = run.checkpoints()[0]
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "extra": Evil()}, path)
    with pytest.raises(UserError, match="more than plain data and tensors"):
        checkpoints.load(path)
    assert cli("resume", "last") == 2
    assert "more than plain data and tensors" in capfd.readouterr().err

    config = run.config
    config["model"]["net"] = {"_target_": "os.system", "command": "touch pwned"}
    write_atomically(run.path / "config.yaml", yaml.safe_dump(config))
    run.update_manifest(raw=config)
    for command in ("resume", "evaluate"):
        assert cli(command, "last") == 2
        assert "_target_=os.system: only classes of" in capfd.readouterr().err
    assert not (workdir / "pwned").exists()


@pytest.fixture
def small_disk(workdir: Path):
    disk = workdir / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_loses_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    monkeypatch.setenv("LEYDEN_RUNS", str(small_disk))
    code = cli("train", *SMALL, "model.net.width=8", "model.net.hidden=[256,84]", "test=false")
    error = capfd.readouterr().err
    assert code == 1
    assert "Traceback" not in error
    assert "no room for" in error
    run = newest()
    assert run.status["state"] == "failed"
    assert "no room" in run.status["reason"]
    whole = run.checkpoints()
    assert whole
    assert all(checkpoints.problem(path) is None for path in whole)
    assert not list((run.path / "checkpoints").glob(".*"))

    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    assert cli("resume", "last") == 0


def test_changed_data_is_refused_on_resume(workdir: Path, capfd: pytest.CaptureFixture):
    forked(lambda: (at_step(9, lambda: os.kill(os.getpid(), signal.SIGKILL)), main(["train", *SMALL])))
    run = newest()
    manifest = run.manifest
    manifest["data"]["train"]["sha256"] = "0" * 64
    run.update_manifest(data=manifest["data"])
    assert cli("resume", "last") == 2
    assert "the train data is not what" in capfd.readouterr().err
    assert run.checkpoints()


def test_a_misspelt_monitor_costs_one_step(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *SMALL, "+checkpoint.monitor=val/acuracy") == 2
    assert "val/acuracy was not logged; did you mean val/accuracy?" in capfd.readouterr().err
    assert cli("train", *SMALL, "expect={metric:test/acc,at_least:0.5}") == 2
    assert "expect.metric=test/acc was not logged; did you mean test/" in capfd.readouterr().err
    assert not list_runs()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.betas=[0.9,2]", "optimizer: Invalid beta parameter at index 1: 2"),
        ("schedule.pct_start=2", "schedule: Expected float between 0 and 1 pct_start, but got 2"),
    ],
)
def test_an_optimizer_refuses_its_arguments_before_the_run_is_announced(
    workdir: Path, capfd: pytest.CaptureFixture, override: str, told: str
):
    threads = cores() + 1
    assert cli("train", *SMALL, override, f"threads={threads}") == 2
    out, err = capfd.readouterr()
    assert err == f"leyden: {told}\n"
    assert out.startswith(f"threads={threads}: more than the {threads - 1} cores here")
    assert out.count("\n") == 1
    assert not list_runs()


def test_a_loss_that_is_not_a_number_stops_the_run(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *SMALL, "optimizer.lr=1e30", "schedule=constant") == 1
    assert "train/loss is nan at step" in capfd.readouterr().err
    assert newest().status["state"] == "failed"


def test_a_sweep_with_one_wrong_job_starts_none(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", "-m", "data.batch_size=32,0") == 2
    assert "job 1 (data.batch_size=0): data.batch_size=0: should be greater than 0" in capfd.readouterr().err
    assert not list_runs()


def test_names_find_runs(workdir: Path):
    for name in ("a/20260101-000000-aaaa", "a/20260101-000000-aabb", "b/20260102-000000-cccc"):
        (workdir / "runs" / name).mkdir(parents=True)
        (workdir / "runs" / name / "config.yaml").write_text("{}")
    assert find_run("last").name == "b/20260102-000000-cccc"
    assert find_run("aabb").name == "a/20260101-000000-aabb"
    assert find_run("runs/b/20260102-000000-cccc").name == "b/20260102-000000-cccc"
    with pytest.raises(UserError, match="part of the names of 2 runs"):
        find_run("a/")
    with pytest.raises(UserError, match="no such run"):
        find_run("zebra")


def test_the_last_run_is_the_same_in_a_copy_of_the_runs(workdir: Path):
    for name, created in (("a", "2026-01-02T01:30:00+01:00"), ("b", "2026-01-02T00:45:00+00:00"), ("c", None)):
        folder = workdir / "runs/digits" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("{}")
        records.write(folder / "manifest.json", {"id": name, "created": created} if created else {})
    for name, time in (("a", 1.8e9), ("b", 1.7e9), ("c", 1.6e9)):  # as a copy may leave them
        os.utime(workdir / "runs/digits" / name / "config.yaml", (time, time))
    assert [run.path.name for run in list_runs()] == ["c", "a", "b"]
    assert find_run("last").path.name == "b"


def test_a_name_means_a_sweep_or_one_of_its_runs(workdir: Path):
    for name in ("nets/20260101-000000-aaaa", "nets/20260101-000000-bbbb"):
        for job in ("1", "10"):
            (workdir / "runs" / name / job).mkdir(parents=True)
            (workdir / "runs" / name / job / "config.yaml").write_text("{}")
        (workdir / "runs" / name / "multirun.yaml").write_text("")
    sweep = workdir / "runs/nets/20260101-000000-aaaa"
    for name in ("aaaa", "nets/20260101-000000-aaaa", "runs/nets/20260101-000000-aaaa/"):
        assert find_sweep(name) == sweep
    for name in ("nets", "aaaa/1", "last", "zebra"):
        assert find_sweep(name) is None
    assert find_run("nets/20260101-000000-aaaa/1").path == sweep / "1"
    assert [run.path for run in find_runs(["aaaa", "nets/20260101-000000-aaaa/1"])] == [sweep / "1", sweep / "10"]
    with pytest.raises(UserError, match="is part of the names of 4 runs"):
        find_run("nets/")


def test_a_wrong_request_removes_only_what_it_made(workdir: Path):
    mine = workdir / "precious"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years")
    assert cli("train", *SMALL, "optimizer.lr=-1", f"hydra.run.dir={mine}") == 2
    assert (mine / "thesis.tex").read_text() == "years"
    assert cli("train", *SMALL, "optimizer.lr=-1", "name=gone") == 2
    assert not (workdir / "runs/gone").exists()
    assert cli("train", *SMALL, "trainer.max_epochs=1", "name=stopped") == 0
    run = newest()
    for checkpoint in (run.path / "checkpoints").iterdir():
        checkpoint.unlink()
    (run.path / "metrics.jsonl").unlink()
    run.set_status("interrupted")
    config = run.config
    config["data"]["batch_size"] = 5000
    write_atomically(run.path / "config.yaml", yaml.safe_dump(config))
    assert cli("resume", "last") == 2
    assert (run.path / "config.yaml").exists()


def test_no_whole_checkpoint_is_no_reason_to_begin_again(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *SMALL) == 0
    run = newest()
    run.set_status("interrupted")
    for path in run.checkpoints():
        path.write_bytes(path.read_bytes()[:100])
    assert cli("resume", "last") == 2
    assert "has no whole checkpoint" in capfd.readouterr().err


def test_every_flipped_byte_is_refused_or_harmless(tmp_path: Path):
    path = tmp_path / "step-1.ckpt"
    torch.save({"state_dict": {"w": torch.arange(4.0)}}, path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x15]) + whole[position + 1 :])
        if checkpoints.problem(path) is None:
            with contextlib.suppress(UserError):
                assert torch.equal(checkpoints.load(path)["state_dict"]["w"], torch.arange(4.0))


def test_a_declared_package_lends_no_others_functions(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    (workdir / "conf").mkdir()
    (workdir / "conf/project.yaml").write_text("targets: [dog_lab]\n")
    (workdir / "dog_lab").mkdir()
    (workdir / "dog_lab/__init__.py").write_text("from os import system\ndef make(): return 3\n")
    monkeypatch.syspath_prepend(workdir)
    assert instantiate({"_target_": "dog_lab.make"}, "model") == 3
    with pytest.raises(UserError, match="not a class of an allowed package"):
        instantiate({"_target_": "dog_lab.system", "command": "touch pwned"}, "model")
    assert not (workdir / "pwned").exists()


def test_best_is_the_best_of_all_validations(workdir: Path):
    learning = ["optimizer.lr=1e-2", "model.net.width=6", "trainer.max_epochs=6", "data.limit=512"]
    assert cli("train", *SMALL, *learning) == 0
    run = newest()
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "val/accuracy" in row]
    best = max(validated, key=lambda row: row["val/accuracy"])
    assert best["val/accuracy"] > min(row["val/accuracy"] for row in validated)
    assert (run.path / "checkpoints/best.ckpt").resolve().name == f"step-{best['step']:09d}.ckpt"
