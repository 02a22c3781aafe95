"""The extensions in docs/extend.md and the README are complete: in a user's project, they do what the pages say."""

import csv
import json
import re
import shlex
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leyden.run.directory import Run
from leyden.run.find import find_run, list_runs
from support.processes import cli

ROOT = Path(__file__).parents[2]
PAGE, README = (ROOT / "docs" / "extend.md").read_text(), (ROOT / "README.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
REQUEST = 2  # the exit code of a wrong request


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project with the files of the page, pictures and sounds."""
    path = tmp_path_factory.mktemp("extended") / "my-project"
    assert cli("new", str(path)) == 0
    for name, text in re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    rng = np.random.default_rng(0)
    for colour, name in enumerate(("aster", "poppy", "rose")):
        (path / "flowers" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 100, (20, 24, 3), np.uint8)
            pixels[..., colour] += 150
            Image.fromarray(pixels).save(path / "flowers" / name / f"{number}.png")
    (path / "sounds").mkdir()
    for hertz in (220, 440):
        angle = 2 * np.pi * hertz * np.arange(2000) / 8000
        tone = 8192 * (sum(np.sin(k * angle) / k for k in (1, 2, 3)) + 0.3 * rng.standard_normal(2000))
        with wave.open(str(path / "sounds" / f"{hertz}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(tone.astype("<i2").tobytes())
    (path / "sounds" / "broken.wav").write_text("no sound")
    return path


@pytest.fixture
def project(written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(written)
    monkeypatch.delenv("LEYDEN_RUNS", raising=False)
    return written


def commands(section: str) -> list[list[str]]:
    """Return the arguments of every `leyden …` that a section shows."""
    return [shlex.split(line) for line in re.findall(r"^    leyden (.+)$", SECTIONS[section], flags=re.MULTILINE)]


def train(section: str) -> Run:
    arguments, *_ = commands(section)
    assert cli(*arguments) == 0
    return list_runs()[-1]


def test_a_net_in_a_shipped_model(project: Path):
    run = train("A net in a shipped model")
    assert run.config["model"]["_target_"] == "leyden.models.ImageClassifier"
    assert run.status["metrics"]["test/accuracy"] > 0.3
    assert (run.path / "figures" / "test" / "confusion.png").exists()


def test_a_plain_module_and_its_data(project: Path):
    run = train("A LightningModule and a LightningDataModule")
    assert run.status["checkpoint"]["metric"] == "val/loss"
    assert run.status["metrics"]["val/loss"] < 1  # the sums have a mean of 2
    _, with_loaders = commands("A LightningModule and a LightningDataModule")
    assert cli(*with_loaders) == 0
    assert list_runs()[-1].status["step"] == 20


def test_the_readmes_own_model(project: Path):
    section = README.partition("\n## Your own model\n")[2].partition("\n## ")[0]
    names = ("my_project/nets.py", "conf/model/two_layers.yaml")
    for name, text in zip(
        names, re.findall(r"```(?:python|yaml)\n(.*?)^```", section, re.MULTILINE | re.DOTALL), strict=True
    ):
        assert name in section
        (project / name).write_text(text)
    command = re.findall(r"^\$ leyden (train model=two_layers .+)$", section, flags=re.MULTILINE)
    assert cli(*shlex.split(command[0])) == 0
    assert list_runs()[-1].status["metrics"]["test/accuracy"] > 0.3


def test_a_data_set_of_images_is_five_lines(project: Path, capfd: pytest.CaptureFixture):
    assert len((project / "conf/data/flowers.yaml").read_text().splitlines()) == 5
    run = train("A data set of images")
    assert sum(split["size"] for split in run.manifest["data"].values()) == 60
    capfd.readouterr()
    assert cli("predict", run.name, "flowers/rose/0.png", "--json") == 0
    assert set(json.loads(capfd.readouterr().out)["probabilities"]) == {"aster", "poppy", "rose"}


def test_a_metric(project: Path):
    run = train("A metric")
    (verdict,) = run.status["expect"]
    assert verdict["held"]
    assert run.best_checkpoint() is not None
    assert 0.6 < run.status["metrics"]["val/auroc"] <= 1


def test_a_logger_and_a_callback(project: Path):
    run = train("A logger and a callback")
    rows = [line.split("\t") for line in (run.path / "table.tsv").read_text().splitlines()]
    assert {"val/accuracy", "train/weight_norm"} <= {name for _, name, _ in rows}


@pytest.mark.slow
def test_a_new_kind_of_task(project: Path, capfd: pytest.CaptureFixture):
    first, rerun, predict, to_file, compare, evaluate, *by_samples = commands("A new kind of task")
    assert cli(*first) == 0
    run = find_run("pitch")
    assert [verdict["held"] for verdict in run.status["expect"]] == [True]
    assert (run.path / "figures" / "test" / "pitches.png").exists()
    assert {split["size"] for split in run.manifest["data"].values()} == {6000, 200}
    assert cli(*rerun) == 0
    capfd.readouterr()
    assert cli(*predict) == REQUEST
    told = capfd.readouterr()
    assert "sounds/broken.wav is not a .wav file" in told.err
    assert "hertz" in told.out
    assert cli(*to_file) == REQUEST
    with Path("pitches.csv").open(newline="") as file:
        answers = {Path(row["name"]).stem: float(row["hertz"]) for row in csv.DictReader(file)}
    assert answers["440"] == pytest.approx(440, rel=0.2)  # three semitones
    assert 110 < answers["220"] < answers["440"]
    assert cli(*evaluate) == 0
    (path,) = run.path.glob("evaluations/*/predictions.npz")
    with np.load(path) as saved:
        scores = saved["score.semitones"]
    assert scores.mean() == pytest.approx(run.status["metrics"]["test/semitones"], abs=1e-4)
    for command in (compare, *by_samples):
        assert cli(*command) == 0
    assert capfd.readouterr().out.count("test/semitones (lower is better)") == 2
