"""Before a run goes on, files that are damaged, missing or another run's are reported and set aside."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from leyden.cli import main
from leyden.run.directory import Run
from leyden.run.find import list_runs
from support.processes import cli, forked
from support.training import OVERRIDES, assert_same, at_step

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed at step 24, with checkpoints of steps 9 and 18."""
    return kill(tmp_path_factory.mktemp("killed"))


def kill(folder: Path, *overrides: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        act = [at_step, 24, lambda: os.kill(os.getpid(), signal.SIGKILL)]
        assert forked(lambda: (act[0](*act[1:]), main(["train", *OVERRIDES, *overrides]))) == -signal.SIGKILL
        return list_runs()[0].path


@pytest.fixture
def run(workdir: Path, killed: Path) -> Run:
    """A copy of the killed run, which is as good as the run itself."""
    path = workdir / "runs" / killed.parent.name / killed.name
    shutil.copytree(killed, path, symlinks=True)
    return Run(path)


def test_a_copied_run_goes_on(run: Run, uninterrupted: Run):
    assert cli("resume", "last") == 0
    assert_same(run, uninterrupted)


@pytest.mark.parametrize("setting", ["seed=1", pytest.param("model.net.width=2", marks=pytest.mark.slow)])
def test_another_runs_checkpoint_is_set_aside(run: Run, uninterrupted: Run, tmp_path_factory, capfd, setting: str):
    other = kill(tmp_path_factory.mktemp("other"), setting)
    shutil.copy(other / "checkpoints/step-000000018.ckpt", run.path / "checkpoints")
    told = "its " + setting.replace("=", " is ")
    if setting == "model.net.width=2":  # where there is no id, the config tells
        (run.path / "manifest.json").unlink()
    assert cli("evaluate", "last", "--checkpoint=step-18") == 2
    assert f"step-000000018.ckpt is of another run ({told})" in capfd.readouterr().err
    assert cli("resume", "last") == 0
    captured = capfd.readouterr()
    assert f"step-000000018.ckpt is of another run ({told})" in captured.out
    assert "resumed at step 9" in captured.out
    assert torch.load(run.path / "checkpoints/step-000000018.damaged", weights_only=True)
    assert_same(run, uninterrupted)


def test_metrics_that_are_lost_are_missed(run: Run, capfd: pytest.CaptureFixture):
    path = run.path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    kept = path.read_bytes()
    assert cli("resume", "last") == 0
    last = json.loads(lines[2])["step"]
    assert (
        f"metrics.jsonl is missing values logged after step {last}, before step-000000018.ckpt"
        in capfd.readouterr().out
    )
    assert (run.path / "metrics.jsonl.damaged").read_bytes() == kept
    assert run.status["state"] == "finished"


def test_lost_and_damaged_metrics_are_missed(run: Run, capfd: pytest.CaptureFixture):
    path = run.path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\xff\x00\xfe\n", *lines[2:]]))
    assert cli("resume", "last") == 0
    assert "metrics.jsonl is damaged at line 2" in capfd.readouterr().out
    assert json.loads(path.read_text().splitlines()[0]) == json.loads(lines[0])
    run.set_status("interrupted")
    path.unlink()
    assert cli("resume", "last") == 0
    assert "metrics.jsonl is missing" in capfd.readouterr().out


def test_a_damaged_manifest_is_kept_and_written_anew(run: Run, uninterrupted: Run, capfd: pytest.CaptureFixture):
    whole, path = run.manifest, run.path / "manifest.json"
    path.write_text(path.read_text()[:200])
    assert cli("resume", "last", "threads=1") == 0
    captured = capfd.readouterr()
    assert "manifest.json is damaged (not JSON): kept as manifest.json.damaged" in captured.err
    assert "manifest.json: created, command" in captured.out.replace("id, ", "")
    assert (run.path / "manifest.json.damaged").stat().st_size == 200
    for key in ("id", "command", "git", "raw", "packages", "leyden", "overrides", "data"):
        assert run.manifest[key] == whole[key], key
    assert len(run.manifest["resumed"]) == 1
    assert_same(run, uninterrupted)


def test_a_damaged_status_is_kept_and_written_anew(run: Run, uninterrupted: Run, capfd: pytest.CaptureFixture):
    (run.path / "status.json").write_bytes(b"\xff\xfe\x00")
    assert cli("resume", "last") == 0
    assert "status.json is damaged (not JSON): kept as status.json.damaged" in capfd.readouterr().err
    assert (run.path / "status.json.damaged").read_bytes() == b"\xff\xfe\x00"
    assert_same(run, uninterrupted)


def test_checkpoints_that_are_gone_are_missed(run: Run, capfd: pytest.CaptureFixture):
    (run.path / "checkpoints/step-000000018.ckpt").unlink()
    assert cli("resume", "last") == 0
    assert "step-000000018.ckpt is missing; going back to step-000000009.ckpt" in capfd.readouterr().out
    run.set_status("interrupted")
    for path in run.checkpoints():
        path.unlink()
    assert cli("resume", "last") == 2
    assert "has lost its checkpoints" in capfd.readouterr().err


NET = """
from leyden.nets.cnn import ConvNet
class Net(ConvNet):
    def forward(self, x):
        return super().forward(x) * {factor}
"""


def test_code_that_changed_is_told_or_refused(workdir: Path, capfd: pytest.CaptureFixture):
    (workdir / "conf").mkdir()
    (workdir / "conf/project.yaml").write_text("targets: [my_lab]\n")
    (workdir / "my_lab.py").write_text(NET.format(factor=1))
    path = kill(workdir, "model.net._target_=my_lab.Net")
    assert "my_lab" in Run(path).manifest["code"]
    assert not any(name.startswith(("leyden", "torch", "json")) for name in Run(path).manifest["code"])
    (workdir / "my_lab.py").write_text(NET.format(factor=2))
    assert cli("resume", "last", "strict_code=true") == 2
    error = capfd.readouterr().err
    assert "the code has changed since" in error
    assert "my_lab.py; strict_code=true" in error
    assert cli("resume", "last") == 0
    assert "was last started: my_lab.py" in capfd.readouterr().out
    assert Run(path).manifest["resumed"][-1]["changed"] == ["my_lab.py"]


def test_a_net_of_another_shape_than_the_checkpoints_is_refused(workdir: Path, capfd: pytest.CaptureFixture):
    (workdir / "conf").mkdir()
    (workdir / "conf/project.yaml").write_text("targets: [my_lab]\n")
    (workdir / "my_lab.py").write_text(NET.format(factor=1))
    kill(workdir, "model.net._target_=my_lab.Net")
    wider = "def __init__(self, width, **others):\n        super().__init__(width=width + 1, **others)\n    def forward"
    (workdir / "my_lab.py").write_text(NET.format(factor=1).replace("def forward", wider))
    assert cli("resume", "last") == 2
    error = capfd.readouterr().err
    assert "step-000000018.ckpt does not fit the model that the code builds now: size mismatch" in error
    assert error.count("\n") == 1
