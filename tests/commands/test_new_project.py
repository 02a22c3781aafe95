"""Every command works in the project that `leyden new` writes, with the user's own model and data, or refuses clearly."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from leyden.cli import main
from leyden.errors import UserError
from leyden.evaluation.predict import predict
from leyden.run.directory import Run
from leyden.run.find import list_runs
from support.processes import cli

REQUEST = 2  # the exit code of a wrong request
SHORT = ["experiment=mine", "trainer.max_epochs=1", "expect=null"]
CLASSES = ["|", "\\", "-", "/"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project with one short run, and a picture that its model can look at."""
    path = tmp_path_factory.mktemp("new") / "stripe-lab"
    before = Path.cwd()
    assert cli("new", str(path)) == 0
    os.chdir(path)
    try:
        assert cli("train", *SHORT) == 0
    finally:
        os.chdir(before)
    rows = (127.5 + 127.5 * np.sin(np.arange(16))).astype(np.uint8)
    Image.fromarray(np.tile(rows[:, None], (1, 16))).save(path / "stripes.png")
    return path


@pytest.fixture
def project(written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as working directory, with only the first run in it."""
    monkeypatch.chdir(written)
    monkeypatch.delenv("LEYDEN_RUNS", raising=False)
    for run in list_runs()[1:]:
        shutil.rmtree(run.path.parent if run.sweep else run.path, ignore_errors=True)  # a sweep goes with its first job
    return written


@pytest.fixture
def run(project: Path) -> Run:
    return list_runs()[0]


def test_check(project: Path, capfd: pytest.CaptureFixture):
    assert cli("check", "experiment=mine") == 0
    assert "experiment=mine" in capfd.readouterr().out


def test_train_over_seeds(project: Path):
    assert cli("train", "-m", "experiment=mine", "seed=0,1", "+trainer.max_steps=1", "expect=null") == 0
    assert sorted(run.config["seed"] for run in list_runs()[1:]) == [0, 1]


def test_ls_and_show(run: Run, capfd: pytest.CaptureFixture):
    assert cli("ls") == 0
    assert "mine" in capfd.readouterr().out
    assert cli("show", "last") == 0
    assert "step-18" in capfd.readouterr().out


def test_resume_says_that_nothing_is_left(run: Run, capfd: pytest.CaptureFixture):
    assert cli("resume", "last") == 0
    assert "nothing left to do" in capfd.readouterr().out


def test_rerun(run: Run):
    assert cli("rerun", "last", "seed=5", "+trainer.max_steps=1") == 0
    assert [other.config["seed"] for other in list_runs()] == [0, 5]


def test_evaluate_and_save_predictions(run: Run):
    assert cli("evaluate", "last", "data.noise=0.8", "--save-predictions") == 0
    (folder,) = (run.path / "evaluations").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    with np.load(folder / "predictions.npz") as saved:
        assert saved["probability"].shape == (500, 4)
        accuracy = (saved["prediction"] == saved["target"]).mean()
    assert accuracy == pytest.approx(metrics["test/accuracy"], abs=1e-6)


def test_predict(run: Run, capfd: pytest.CaptureFixture):
    assert cli("predict", "last", "stripes.png", "--json") == 0
    prediction = json.loads(capfd.readouterr().out)
    assert prediction["file"] == "stripes.png"
    assert list(prediction["probabilities"]) == CLASSES
    assert sum(prediction["probabilities"].values()) == pytest.approx(1)
    assert prediction["probability"] == prediction["probabilities"][prediction["label"]]


def test_predict_names_files_that_cannot_be_read(run: Run, capfd: pytest.CaptureFixture):
    assert cli("predict", "last", "README.md", "stripes.png") == REQUEST
    told = capfd.readouterr()
    assert "stripes.png" in told.out
    assert "README.md" in told.err


def test_predict_from_python(run: Run):
    [prediction] = predict(run, [Path("stripes.png")])
    assert prediction["name"] == "stripes.png"
    assert prediction["label"] in CLASSES
    with pytest.raises(UserError, match=r"README\.md"):
        list(predict(run, [Path("README.md")]))


def test_compare(run: Run, capfd: pytest.CaptureFixture):
    assert cli("rerun", "last", "seed=5", "name=other") == 0
    assert cli("compare", "mine", "other") == 0
    assert "test/accuracy" in capfd.readouterr().out


def test_export(run: Run, project: Path):
    assert cli("export", "last", "--weights", "net.safetensors") == 0
    assert sum(tensor.size for tensor in load_file(project / "net.safetensors").values()) == 4224
    (project / "net.safetensors").unlink()


def test_find(project: Path, capfd: pytest.CaptureFixture):
    assert cli("find", "lr", "experiment=mine", "--steps=20") in (0, 1)  # so few steps may show no best rate
    assert cli("find", "batch_size", "experiment=mine", "--min=16", "--max=32") == 0
    assert "lr.png" in capfd.readouterr().out
    assert len(list_runs()) == 1


def test_doctor(project: Path, capfd: pytest.CaptureFixture):
    assert cli("doctor") == 0
    assert str(project / "runs") in capfd.readouterr().out


def test_sample_refuses_a_classifier(run: Run, capfd: pytest.CaptureFixture):
    assert cli("sample", "last") == REQUEST
    assert "generates neither text nor pictures: stripe_lab.model.PictureClassifier" in capfd.readouterr().err


def test_the_queue_refuses_where_there_is_none(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli("train", "experiment=mine", "hydra/launcher=slurm") == REQUEST
    assert "sbatch" in capfd.readouterr().err
    assert cli("submit", "last") == 0
    assert "is finished" in capfd.readouterr().out


def test_the_next_steps_install_what_they_use(workdir: Path, capsys: pytest.CaptureFixture):
    assert main(["new", "stripes"]) == 0
    assert capsys.readouterr().out.endswith("  pip install pytest\n  pytest\n")
