"""A file of another format is refused in one line, which names it, before anything is changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leyden import checkpoints
from leyden.checkpoints import layout
from leyden.cli import main
from leyden.errors import UserError
from leyden.evaluation.references import cached_reference
from leyden.files import formats
from leyden.loggers.wandb import Wandb
from leyden.preparation.tokenizers import Bytes
from leyden.run.directory import Run
from leyden.sweep.directory import Sweep

pytestmark = pytest.mark.usefixtures("undrawn")

TINY = ["data.limit=64", "data.batch_size=32", "model.net.width=2", "trainer.max_epochs=1", "test=false"]
RUN, SWEEP, REQUEST = "runs/tiny/one", "runs/tiny/two", 2  # the exit code of a wrong request
NUMBERS = {99: "has format 99", -1: "has format -1", "one": "has format 'one'"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an unfinished run and a sweep of two trials, their predictions, and a picture."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *TINY, f"hydra.run.dir={RUN}"]) == 0
        assert main(["train", "-m", *TINY, "optimizer.lr=1e-3,1e-2", f"hydra.sweep.dir={SWEEP}"]) == 0
        for path in (RUN, f"{SWEEP}/0"):
            assert main(["evaluate", path, "--save-predictions"]) == 0
        Run(Path(RUN).resolve()).set_status("interrupted")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "new.png")
    return folder


@pytest.fixture
def run(made: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    shutil.copytree(made, workdir, symlinks=True, dirs_exist_ok=True)
    request = workdir / SWEEP / "multirun.yaml"  # a sweep goes on where it began
    request.write_text(request.read_text().replace(str(made), str(workdir)))
    monkeypatch.setattr(formats, "_reported", set())
    return Run(workdir / RUN)


def renumber_json(path: Path, number: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {"job": "12"}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**content, "format": number}))


def renumber_checkpoint(path: Path, number: object) -> None:
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "leyden": {**saved["leyden"], "format": number}}, path)


def renumber_arrays(path: Path, number: object) -> None:
    with np.load(path) as file:
        np.savez(path, **{**file, "format": number})


def renumber_study(path: Path, number: object) -> None:
    Sweep(path).study.set_user_attr("format", number)


CHECKPOINT, PREDICTIONS = "checkpoints/step-*.ckpt", "evaluations/*/predictions.npz"
PREDICT = ["predict", RUN, "new.png", "--out", "new.jsonl"]
CASES: dict[str, tuple[str, Callable[[Path, object], None], list[list[str]]]] = {
    "manifest": (f"{RUN}/manifest.json", renumber_json, [["resume", RUN], ["show", RUN], ["rerun", RUN]]),
    "status": (f"{RUN}/status.json", renumber_json, [["resume", RUN], ["show", RUN], ["compare", RUN]]),
    "checkpoint": (f"{RUN}/{CHECKPOINT}", renumber_checkpoint, [["resume", RUN], ["evaluate", RUN], PREDICT]),
    "predictions": (f"{RUN}/{PREDICTIONS}", renumber_arrays, [["compare", RUN, f"{SWEEP}/0", "--samples", "--force"]]),
    "study": (SWEEP, renumber_study, [["resume", SWEEP], ["show", SWEEP], ["compare", SWEEP]]),
    "submission": (f"{RUN}/slurm.json", renumber_json, [["cancel", RUN], ["submit", RUN]]),
    "parts": ("new.jsonl.parts/request.json", renumber_json, [PREDICT]),
}


def contents(folder: Path, started: bool) -> dict[str, bytes]:
    """Every file but locks, and those in which a run that was started writes down why it failed."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path): path.read_bytes() for path in paths if not (started and path.name in ("status.json", "log.txt"))}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", CASES)
def test_each_kind_is_refused_and_nothing_changes(
    run: Run, workdir: Path, capsys: pytest.CaptureFixture, kind: str, number: object
):
    place, renumber, commands = CASES[kind]
    path = next(workdir.glob(place), workdir / place)
    renumber(path, number)
    started = kind == "checkpoint"  # which is read once the run is locked
    before = contents(workdir, started)
    for command in commands:
        assert main(command) == REQUEST, command
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert NUMBERS[number] in error, command
        assert ("study" if kind == "study" else path.name) in error
        assert ("update leyden" in error) == (number == 99)
        assert contents(workdir, started) == before, command


@pytest.mark.parametrize("kind", ["status", "study"])
def test_lists_go_on_and_call_it_broken(run: Run, workdir: Path, capsys: pytest.CaptureFixture, kind: str):
    place, renumber, _ = CASES[kind]
    renumber(workdir / place, 99)
    assert main(["ls", *(["--sweep"] if kind == "study" else [])]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    [line] = [line for line in out.splitlines() if "broken" in line]
    assert "has format 99" in line
    assert len(out.splitlines()) == (2 if kind == "study" else 4)


def test_a_folder_of_shards_is_refused_by_its_plain_part(run: Run):
    folder = run.path / "checkpoints/step-000000009.ckpt"
    folder.mkdir()
    renumber_checkpoint(run.checkpoints()[-1], 99)
    shutil.copy(run.checkpoints()[-1], folder / layout.PLAIN)
    with pytest.raises(UserError, match=r"step-000000009\.ckpt has format 99, but of checkpoints"):
        checkpoints.origin(folder)


def test_what_was_written_before_the_numbers_is_read_with_a_line(run: Run, capsys: pytest.CaptureFixture):
    for name in ("manifest.json", "status.json"):
        content = json.loads((run.path / name).read_text())
        assert content.pop("format") == 1
        (run.path / name).write_text(json.dumps(content))
    for path in run.checkpoints():
        saved = torch.load(path, weights_only=True)
        assert saved["leyden"].pop("format") == 1
        torch.save(saved, path)
    assert main(["resume", RUN]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "has no format number" in line]
    assert [Path(line.split()[1]).suffix for line in lines] == [".json", ".json", ".ckpt"]
    assert run.manifest["format"] == run.status["format"] == 1
    assert run.status["state"] == "finished"


def test_predictions_from_before_are_refused(run: Run, capsys: pytest.CaptureFixture):
    path = next(run.path.glob(PREDICTIONS))
    with np.load(path) as file:
        np.savez(path, **{name: file[name] for name in file if name != "format"})
    assert main(["compare", RUN, f"{SWEEP}/0", "--samples", "--force"]) == REQUEST
    error = capsys.readouterr().err
    assert "has no format number" in error
    assert "leyden evaluate --save-predictions makes others" in error


def test_what_is_only_written_has_a_number_too(run: Run):
    path = next(run.path.glob("evaluations/*/metrics.json"))
    assert json.loads(path.read_text())["format"] == 1


def test_the_identity_of_a_page_of_wandb(home: Path):
    renumber_json(home / "wandb.json", 99)
    logger = Wandb(run_dir=home, mode="disabled")
    with pytest.raises(UserError, match=r"wandb\.json has format 99, .*: update leyden"):
        _ = logger.experiment
    logger.close(1)  # and give back the environment


def test_a_cached_reference(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LEYDEN_DATA", str(workdir))
    (workdir / "features").mkdir()
    torch.save({"format": 1}, workdir / "features/key.pt")
    with pytest.raises(UserError, match=r"key\.pt has format 1, .* reads format 2: remove it, and the real pictures"):
        cached_reference("key", lambda: pytest.fail("it was measured"))


def test_a_folder_of_tokens(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    from leyden.data.text import token_files

    monkeypatch.setenv("LEYDEN_DATA", str(workdir))
    token_files.tokenise_once({"text": 1}, lambda: (Bytes(), {"train": "some text"}))
    renumber_json(next(workdir.rglob("index.json")), 99)
    with pytest.raises(UserError, match=r"index\.json has format 99, .*: update leyden"):
        token_files.tokenise_once({"text": 1}, lambda: pytest.fail("it was made anew"))
