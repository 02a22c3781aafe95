"""`leyden predict --out`: whole or not there, the same after a kill and on any number of ranks."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leyden.cli import main
from leyden.distributed.world import World
from leyden.evaluation import answer_file
from leyden.evaluation.answer_file import predict_to_file
from leyden.evaluation.predict import Predictor
from leyden.run.find import find_run
from support.processes import cli, forked
from support.series import needs_polars

REQUEST = 2  # the exit code of a wrong request
COUNT = 50


@pytest.fixture
def run(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of one epoch, a folder of pictures of which one is broken, and parts of 16 samples."""
    assert cli("train", "trainer.max_epochs=1", "data.limit=64", "data.batch_size=32") == 0
    folder = workdir / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        Image.fromarray(rng.integers(255, size=(8, 8), dtype=np.uint8)).save(folder / f"{number:02}.png")
    (folder / "20.png").write_text("broken")
    monkeypatch.setattr(answer_file, "PART", 16)
    return folder


def predict(folder: Path, out: str) -> int:
    return cli("predict", "last", str(folder), "--out", out)


def rank(folder: Path, out: Path, number: int, size: int) -> None:
    world = World(number, number, size, size, "torchrun")
    predict_to_file(Predictor(find_run("last"), None, world), [folder], out, world)


def die(count: int) -> None:
    if count > 16:
        os.kill(os.getpid(), signal.SIGKILL)


def predict_until_it_dies(folder: Path, out: Path) -> None:
    predict_to_file(Predictor(find_run("last")), [folder], out, progress=die)


def test_a_killed_prediction_goes_on_and_two_ranks_answer_as_one(run: Path, workdir: Path, capfd):
    assert predict(run, "whole.jsonl") == REQUEST
    assert "20.png is not a picture that can be read" in capfd.readouterr().err
    whole = Path("whole.jsonl").read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [Path(row["name"]).stem for row in rows] == [f"{n:02}" for n in range(COUNT) if n != 20]
    assert len({row["sample"] for row in rows}) == COUNT - 1

    assert forked(predict_until_it_dies, run, workdir / "killed.jsonl") == -signal.SIGKILL
    assert len(list(Path("killed.jsonl.parts").glob("*.jsonl"))) == 2
    assert not Path("killed.jsonl").exists()
    times = {path: path.stat().st_mtime_ns for path in Path("killed.jsonl.parts").glob("*.jsonl")}
    for path in times:
        os.utime(path, (0, 0))  # a part that is made again has another time
    (run / "51.png").write_bytes((run / "00.png").read_bytes())
    assert predict(run, "killed.jsonl") == REQUEST
    assert "killed.jsonl.parts holds parts of another request (other files): remove it" in capfd.readouterr().err
    (run / "51.png").unlink()
    assert predict(run, "killed.jsonl") == REQUEST
    assert Path("killed.jsonl").read_bytes() == whole
    assert not Path("killed.jsonl.parts").exists()

    other = forked(partial(rank, run, workdir / "ranks.jsonl", 1, 2))
    assert other == 0
    assert len(list(Path("ranks.jsonl.parts").glob("*.jsonl"))) == 2
    assert forked(partial(rank, run, workdir / "ranks.jsonl", 0, 2)) == 0
    assert Path("ranks.jsonl").read_bytes() == whole


@needs_polars
def test_other_formats_hold_the_same(run: Path, workdir: Path):
    for out in ("a.jsonl", "a.csv", "a.parquet"):
        assert predict(run, out) == REQUEST
    rows = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert forked(same_table, rows) == 0  # threads of polars do not survive a fork, so this process starts none


def same_table(rows: list[dict]) -> None:
    import polars

    assert polars.read_parquet("a.parquet").to_dicts() == rows
    table = polars.read_csv("a.csv", infer_schema=False).to_dicts()
    assert [row["label"] for row in table] == [row["label"] for row in rows]
    assert [json.loads(row["probabilities"]) for row in table] == [row["probabilities"] for row in rows]


def test_a_file_that_cannot_be_written_is_refused_at_once(run: Path, workdir: Path, capfd):
    (workdir / "there.csv").touch()
    for out, message in {
        "there.csv": "--out there.csv exists already: remove it, or name another file",
        "a.xls": "--out a.xls: its name must end in .parquet, .jsonl or .csv",
        "gone/a.csv": "--out gone/a.csv: there is no folder gone",
    }.items():
        assert main(["predict", "last", str(run), "--out", out]) == REQUEST
        assert message in capfd.readouterr().err
    (workdir / "empty").mkdir()
    assert predict(workdir / "empty", "a.csv") == REQUEST
    assert "empty holds no file whose name ends in .png or" in capfd.readouterr().err
