"""`leyden predict --out`: whole or not there, the same after a kill and on any number of ranks."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leyden.cli import main
from leyden.evaluation import answer_file
from leyden.evaluation.answer_file import predict_to_file
from leyden.evaluation.predict import Predictor
from leyden.run.find import find_run
from support.processes import cli, forked
from support.series import needs_polars

pytestmark = pytest.mark.usefixtures("undrawn")

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
    monkeypatch.setattr(answer_file, "PART_SIZE", 16)
    return folder


def predict(folder: Path, out: str) -> int:
    return cli("predict", "last", str(folder), "--out", out)


def predict_on_ranks(size: int, folder: Path, out: str, late: int | None = None, failing: int | None = None) -> list:
    """Run the command in processes with torchrun's variables; return their exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    arguments = [(rank, size, port, folder, out, rank == late, rank == failing) for rank in range(size)]
    processes = [multiprocessing.get_context("fork").Process(target=as_rank, args=a) for a in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def as_rank(rank: int, size: int, port: int, folder: Path, out: str, is_late: bool, is_failing: bool) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {name: str(value) for name, value in {**places, "MASTER_PORT": port}.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if is_late:
        time.sleep(1)
    if is_failing:
        answer_file._part = None  # calling it raises a TypeError
    os._exit(main(["predict", "last", str(folder), "--out", out]))


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

    capfd.readouterr()
    assert predict_on_ranks(2, run, "ranks.jsonl") == [REQUEST, 0]
    assert Path("ranks.jsonl").read_bytes() == whole
    assert not Path("ranks.jsonl.parts").exists()
    told = capfd.readouterr()
    assert "answers: ranks.jsonl" in told.out
    assert told.err.count("20.png is not a picture that can be read") == 1


def test_a_rank_without_a_share_and_one_that_fails(run: Path, workdir: Path, monkeypatch, capfd):
    (run / "20.png").unlink()
    monkeypatch.setattr(answer_file, "PART_SIZE", 1024)  # one part, which is rank 0's
    assert predict_on_ranks(3, run, "ranks.jsonl", late=2) == [0, 0, 0]
    assert len(Path("ranks.jsonl").read_text().splitlines()) == COUNT - 1
    monkeypatch.setattr(answer_file, "PART_SIZE", 16)
    assert predict_on_ranks(2, run, "killed.jsonl", failing=1) == [1, 1]
    assert "rank 1 failed with exit code 1" in capfd.readouterr().err
    assert not Path("killed.jsonl").exists()
    assert predict(run, "killed.jsonl") == 0
    assert len(Path("killed.jsonl").read_text().splitlines()) == COUNT - 1


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


def test_answers_stand_in_the_order_of_the_samples_whatever_their_lengths(workdir: Path):
    prose = "the old man sits on the bank of the river and reads. "
    Path("prose.txt").write_text(20 * prose)
    text = ["data=text", "data.path=prose.txt", "data.window=8", "data.batch_size=4", "data.eval_streams=4"]
    assert cli("train", *text, "model=rnn_lm", "model.net.hidden_size=8", "trainer.max_epochs=1") == 0
    Path("texts.jsonl").write_text("".join(json.dumps({"text": prose[:n]}) + "\n" for n in (9, 40, 3, 25)))
    assert predict(Path("texts.jsonl"), "answers.jsonl") == 0
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == [f"texts.jsonl:{n}" for n in range(1, 5)]
