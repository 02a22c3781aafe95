"""Each command names a damaged file of a run or a sweep in one line, or does without it."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leyden.cli import main
from leyden.data.text import token_files
from leyden.errors import UserError
from leyden.preparation.tokenizers import Bytes
from leyden.run.directory import Run
from leyden.run.find import list_runs

TINY = ["data.limit=64", "data.batch_size=32", "model.net.width=2", "trainer.max_epochs=2", "test=false"]
RAW = re.compile(r"\b[A-Z]\w*(Error|Exception|Warning)\b|Traceback|Errno")
NOISE = np.random.default_rng(0).bytes(2000)


def replace(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def be_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": replace(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "noise": replace(NOISE),
    "noisy line": lambda path: path.write_bytes(path.read_bytes() + NOISE.replace(b"\n", b"") + b"\n"),
    "list": replace(b"[]\n"),
    "number": replace(b"3\n"),
    "wrong type": replace(b'{"state": 7, "step": "x", "raw": 3, "hydra": []}\n'),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deep": replace(b"[" * 1500 + b"\n"),
    "folder": be_a_folder,
    "gone": remove,
}
FILES = ("config.yaml", "manifest.json", "status.json", "metrics.jsonl", "checkpoint")
QUICK = ("ls", "compare")
SLOW = ("show", "evaluate", "predict", "sample", "export", "rerun", "resume")  # each draws, or loads: a share of all


def combinations() -> Iterator:
    for f, file in enumerate(FILES):
        for k, kind in enumerate(DAMAGE):
            yield from (pytest.param(file, kind, command) for command in QUICK)
            marks = [] if kind in ("half", "noise", "gone") else [pytest.mark.slow]
            share = (command for c, command in enumerate(SLOW) if (f + k + c) % 7 == 0)
            yield from (pytest.param(file, kind, command, marks=marks) for command in share)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of two checkpoints, and a picture."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *TINY, "hydra.run.dir=runs/tiny/one"]) == 0
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "new.png")
    return folder


@pytest.fixture
def run(made: Path, workdir: Path) -> Run:
    shutil.copytree(made, workdir, symlinks=True, dirs_exist_ok=True)
    return list_runs()[0]


def call(command: str) -> int:
    more = {"predict": ["new.png"], "export": ["--weights", "new.safetensors"], "sample": ["--out", "out.png"]}
    return main(["ls"] if command == "ls" else [command, "runs/tiny/one", *more.get(command, [])])


def damage(run: Run, file: str, kind: str) -> str:
    """Damage a file of a run; return its name."""
    path = run.checkpoints()[0] if file == "checkpoint" else run.path / file
    DAMAGE[kind](path)
    return path.name


@pytest.mark.parametrize(("file", "kind", "command"), list(combinations()))
def test_each_command_names_what_is_damaged(
    run: Run, capsys: pytest.CaptureFixture, file: str, kind: str, command: str
):
    name = damage(run, file, kind)
    code = call(command)
    out, error = capsys.readouterr()
    assert code in (0, 1, 2)
    assert error.count("\n") <= 2
    assert "Traceback" not in out + error
    if file != "checkpoint":  # of which a word in brackets says what is wrong with the archive
        assert not RAW.search(out + error)
    manifest = {*QUICK, "show", "evaluate", "rerun"} - {"ls"}  # which takes the metric's name from the status
    reads = {"manifest.json": manifest, "status.json": {*QUICK, "show", "resume"}}
    if command in reads.get(file, ()) or (code and command != "sample"):  # this model neither writes nor draws
        assert name in error


def test_one_bad_run_does_not_stop_a_group(made: Path, workdir: Path, capsys: pytest.CaptureFixture):
    for number in range(4):
        path = workdir / f"runs/tiny/{number}"
        shutil.copytree(made / "runs/tiny/one", path, symlinks=True)
        run = Run(path)
        seed = run.manifest["raw"] | {"seed": number}
        run.update_manifest(raw=seed)
    (workdir / "runs/tiny/1/status.json").write_bytes(NOISE)
    (workdir / "runs/tiny/2/manifest.json").write_bytes(NOISE)
    (workdir / "runs/tiny/2/config.yaml").write_bytes(NOISE)
    assert main(["compare", "runs/tiny"]) == 0
    out, error = capsys.readouterr()
    assert "left out: tiny/1, whose status.json cannot be read" in out
    assert "runs/tiny/2/config.yaml cannot be read" in out
    assert not RAW.search(out + error)
    assert main(["ls"]) == 0
    out, error = capsys.readouterr()
    assert len(out.splitlines()) == 5
    assert "broken" in out
    assert main(["compare", "runs/tiny/1"]) == 2
    assert main(["compare", "runs/tiny/2"]) == 2
    assert "config.yaml" in capsys.readouterr().err


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished sweep of two trials."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "-m", *TINY, "optimizer.lr=1e-3,1e-2", "hydra.sweep.dir=runs/multirun/two"]) == 0
    return folder


@pytest.mark.parametrize(
    ("file", "kind"),
    [*((file, kind) for file in ("multirun.yaml", "journal.log") for kind in DAMAGE), ("study", "noise")],
)
def test_each_command_names_what_of_a_sweep_is_damaged(
    swept: Path, workdir: Path, capsys: pytest.CaptureFixture, file: str, kind: str
):
    shutil.copytree(swept, workdir, symlinks=True, dirs_exist_ok=True)
    DAMAGE[kind](workdir / "runs/multirun/two" / file)
    commands = (["show", "--json"], ["compare"], ["ls"], ["ls", "--sweep"])
    for command in (*commands, *((["show"], ["resume"]) if kind == "noise" else ())):
        code = main(command if command[0] == "ls" else [*command, "runs/multirun/two"])
        out, error = capsys.readouterr()
        assert code in (0, 1, 2), command
        assert error.count("\n") <= 2, command
        assert not RAW.search(out + error), command
        if code:
            assert file in error or "multirun/two" in error, command


@pytest.mark.parametrize("kind", ["noise", "wrong type"])
def test_the_report_of_a_sweep_leaves_out_what_is_damaged(swept: Path, workdir: Path, capsys, kind: str):
    shutil.copytree(swept, workdir, symlinks=True, dirs_exist_ok=True)
    for file in ("manifest.json", "status.json", "metrics.jsonl", "config.yaml"):
        DAMAGE[kind](workdir / "runs/multirun/two/1" / file)
    for command in (["show", "runs/multirun/two"], ["resume", "runs/multirun/two"], ["ls"]):
        assert main(command) in (0, 1, 2)
        out, error = capsys.readouterr()
        assert not RAW.search(out + error), command


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("file", ["facts.json", "train.npy"])
def test_damaged_tokens_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, kind: str):
    monkeypatch.setenv("LEYDEN_DATA", str(tmp_path))
    token_files.tokenise_once({"text": 1}, lambda: (Bytes(), {"train": "some text" * 100}))
    path = next(tmp_path.rglob(file))
    DAMAGE[kind](path)
    if (file, kind) == ("train.npy", "noisy line"):
        return  # which numpy does not read
    with pytest.raises(UserError, match=f"{path.parent.name} is damaged: .*remove the folder"):
        token_files.load_tokens({"text": 1})
