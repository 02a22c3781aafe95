"""Commands on runs show and measure what the run directory holds, and leave it as it was."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from leyden.cli import main
from leyden.commands import doctor
from leyden.config.locations import CONF
from leyden.config.yaml_files import choices
from leyden.figures.terminal import plot
from leyden.run.directory import Run
from leyden.run.find import list_runs
from leyden.run.summary import duration
from support.processes import cli, forked
from support.refused import refused

OVERRIDES = [
    "data.limit=200",
    "data.batch_size=10",
    "optimizer.lr=5e-3",
    "callbacks=ema",
    "callbacks.ema.decay=0.9",
    "trainer.max_epochs=2",
    "name=tiny",
]
REQUEST = 2  # the exit code of a wrong request


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli("train", *OVERRIDES, "expect={metric: test/accuracy, at_least: 1}") == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The one trained run, found from its working directory."""
    monkeypatch.chdir(trained)
    monkeypatch.delenv("LEYDEN_RUNS", raising=False)
    return list_runs()[0]


def evaluation(run: Run) -> dict:
    newest = max((run.path / "evaluations").glob("*/metrics.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())


def watched(run: Run) -> dict[str, bytes]:
    return {n: (run.path / n).read_bytes() for n in ("metrics.jsonl", "status.json", "manifest.json", "log.txt")}


def test_evaluate_repeats_the_runs_own_test(run: Run, capfd: pytest.CaptureFixture):
    before = watched(run)
    assert cli("evaluate", "last") == 0
    facts = evaluation(run)
    own = {name: value for name, value in run.status["metrics"].items() if name.startswith("test/")}
    assert facts["metrics"] == own
    assert facts["checkpoint"] == run.best_checkpoint().name
    assert facts["data"]["test"]["size"] == 359
    assert watched(run) == before
    assert list((run.path / "evaluations").rglob("confusion.png"))
    out = capfd.readouterr().out
    assert "test/accuracy" in out
    assert "other data" not in out


def test_evaluate_takes_overrides_a_split_and_a_checkpoint(run: Run):
    last = run.checkpoints()[0]
    name = f"step-{int(last.stem.removeprefix('step-'))}"
    overrides = ["data.batch_size=500", "accelerator=cpu", "trainer.precision=64-true"]
    assert cli("evaluate", run.name, "--split=val", *overrides, "--checkpoint", name) == 0
    facts = evaluation(run)
    assert (facts["checkpoint"], facts["split"], facts["overrides"]) == (last.name, "val", overrides)
    final = run.status["metrics"]["val/accuracy"]
    assert facts["metrics"]["val/accuracy"] == pytest.approx(final, abs=0.02)


def test_evaluate_writes_elsewhere_if_the_run_cannot_be_written(
    run: Run, workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    shutil.copytree(run.path, workdir / "theirs", symlinks=True, ignore=lambda *_: ["evaluations"])
    (workdir / "theirs" / "evaluations").touch()  # no folder can be made there, by root either
    manifest = json.loads((workdir / "theirs" / "manifest.json").read_text())
    manifest["raw"]["logger"] = {"mlflow": {"_target_": "lightning.pytorch.loggers.MLFlowLogger"}}  # not installed here
    (workdir / "theirs" / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(workdir)
    line = refused(capfd, "evaluate", "theirs")
    assert re.fullmatch(
        r"theirs/evaluations/\S+ cannot be made: [A-Z][a-z ]+; --out DIR writes .* another folder", line
    )
    assert cli("evaluate", "theirs", "--out", "mine/first") == 0
    assert "of theirs: mine/first" in capfd.readouterr().out.replace(f"{workdir}/", "")
    assert json.loads(Path("mine/first/metrics.json").read_text())["metrics"]
    assert refused(capfd, "evaluate", "theirs", "--out", "mine") == "--out=mine is not empty: name a new folder"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such run in runs"),
        (["last", "data.batchsize=5"], "did you mean data.batch_size?"),
        (["last", "experiment=cnn_digits"], "leyden train experiment=cnn_digits makes another run"),
        (["last", "--checkpoint=step-3"], "--checkpoint=step-3: tiny/"),
        (["last", "model.net.width=5"], "does not fit the model of this config: size mismatch for net.conv1"),
        (["last", "--slit=val"], "leyden evaluate --help"),
        (
            ["last", "data=mnist"],
            "was trained with [1, 8, 8]; 'model.net.image_shape=[1, 8, 8]' keeps the net as it is",
        ),
    ],
)
def test_evaluate_says_what_is_wrong(run: Run, capfd: pytest.CaptureFixture, arguments: list[str], said: str):
    assert cli("evaluate", *arguments) == REQUEST
    error = capfd.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_predict_labels_what_the_test_split_holds(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture):
    from leyden.data.images.digits import Digits

    _, test = Digits(10, (1, 8, 8)).read()
    np.save(tmp_path / "many.npy", test.images)
    Image.fromarray(test.images[0, 0]).save(tmp_path / "first.png")
    assert cli("predict", "--json", "last", str(tmp_path / "first.png"), str(tmp_path / "many.npy")) == 0
    first, *many = map(json.loads, capfd.readouterr().out.splitlines())
    assert first["file"] == str(tmp_path / "first.png")
    assert many[1]["file"] == f"{tmp_path / 'many.npy'}[1]"
    assert first["probabilities"] == pytest.approx(many[0]["probabilities"], abs=1e-5)
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    correct = [int(guess["label"]) == label for guess, label in zip(many, test.labels, strict=True)]
    assert np.mean(correct) == pytest.approx(run.status["metrics"]["test/accuracy"], abs=1e-6)


def test_predict_names_every_file_that_it_cannot_read(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (20, 20)).save(tmp_path / "good.png")
    assert cli("predict", "last", "gone.png", str(tmp_path)) == REQUEST
    assert capfd.readouterr().err == "leyden: gone.png does not exist\n"
    assert cli("predict", "last", str(tmp_path / "text.png"), str(tmp_path / "good.png")) == REQUEST
    told = capfd.readouterr()
    assert "good.png" in told.out
    assert "good.png: 20x20 grey read as 8x8 grey" in told.err
    assert "text.png is not a picture that can be read" in told.err


def test_a_run_has_a_name_and_a_path(run: Run, capfd: pytest.CaptureFixture):
    assert refused(capfd, "show", "").startswith("the name of a run is empty")
    assert main(["ls", f"runs/{run.name}/"]) == 0
    assert run.name in capfd.readouterr().out


LOADING_TORCH = ("checkpoints.choose", "evaluation.export", "evaluation.measure", "evaluation.predict")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--checkpoint=step-7"], "has best, last, step-"),
        (["export", "--weights=w.safetensors", "--checkpoint=last-but-one"], "has best, last, step-"),
        (["sample", "--checkpoint=step-7"], "has best, last, step-"),
        (["predict", "note.txt", "--checkpoint=step-7"], "has best, last, step-"),
        (["predict", "note.txt"], "note.txt is not a picture that can be read"),
        (["predict", "empty"], "empty holds no file whose name ends in .png"),
    ],
)
def test_what_names_and_files_show_is_refused_before_torch_is_imported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, arguments, message
):
    for name in LOADING_TORCH:
        monkeypatch.setitem(sys.modules, f"leyden.{name}", None)  # it cannot be imported
    monkeypatch.setenv("LEYDEN_RUNS", str(Path("runs").resolve()))
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("no picture")
    Path("empty").mkdir()
    command, *options = arguments
    assert message in refused(capfd, command, run.name, *options)


def test_a_run_without_a_checkpoint_is_refused_before_torch_is_imported(
    run: Run, workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    shutil.copytree(run.path, workdir / "bare", ignore=lambda *_: ["checkpoints"])
    monkeypatch.chdir(workdir)
    for name in LOADING_TORCH:
        monkeypatch.setitem(sys.modules, f"leyden.{name}", None)
    for command in (["evaluate"], ["export", "--weights=w.safetensors"], ["predict", "bare"], ["sample"]):
        assert "bare has no checkpoint; it is finished" in refused(capfd, command[0], "bare", *command[1:])


def test_ls_tells_states_apart_and_survives_debris(run: Run, capfd: pytest.CaptureFixture):
    for name in ("killed", "broken", "empty", "odd"):
        folder = run.path.parents[1] / "debris" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
    debris = run.path.parents[1] / "debris"
    (debris / "half-made").mkdir()
    beat = time.time() - 3700
    (debris / "killed" / "status.json").write_text(json.dumps({"state": "running", "step": 7, "heartbeat": beat}))
    (debris / "killed" / "metrics.jsonl").write_text('{"step": 7, "val/loss": 0.5}\n{"step": 8, "val/lo')
    (debris / "broken" / "status.json").write_text("[1, 2]")
    (debris / "odd" / "manifest.json").write_bytes(b"\xff")
    try:
        assert cli("ls", "--json") == 0
        rows = {row["name"]: row for row in map(json.loads, capfd.readouterr().out.splitlines())}
        assert next(iter(rows)) == run.name
        assert rows[run.name]["metric"] == "test/accuracy"
        assert rows[run.name]["expect"][0]["held"] is False
        states = {name.partition("/")[2]: row["state"] for name, row in rows.items() if name != run.name}
        assert states == {"killed": "killed", "broken": "broken", "empty": "broken", "odd": "broken"}
        assert (rows["debris/killed"]["metric"], rows["debris/killed"]["value"]) == ("val/loss", 0.5)
        assert cli("ls", "debris/k") == 0
        listed = capfd.readouterr().out
        assert "1 h 01 min ago" in listed
        assert run.name not in listed
        assert cli("ls", "nothing-of-the-kind") == REQUEST
    finally:
        shutil.rmtree(debris)


def test_ls_cuts_a_long_reason_and_no_name(
    run: Run, workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.chdir(workdir)
    name = "a_name_of_many_words_" * 4
    folder = shutil.copytree(run.path, workdir / "runs" / name / "0", ignore=lambda *_: ["checkpoints", "figures"])
    (folder / "status.json").write_text(json.dumps({"state": "failed", "reason": "CUDA ran out of memory: " * 20}))
    assert main(["ls"]) == 0
    line = capfd.readouterr().out.splitlines()[1]
    assert line.startswith(f"{name}/0  failed")
    assert line.endswith("…")
    assert len(line) < 200
    assert main(["ls", "--json"]) == 0
    assert "…" not in capfd.readouterr().out


def test_ls_of_hundreds_is_quick(workdir: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workdir)
    for number in range(300):
        shutil.copytree(run.path, workdir / "runs" / "many" / f"{number}", ignore=lambda *_: ["checkpoints", "figures"])
    began = time.process_time()
    assert main(["ls"]) == 0
    assert time.process_time() - began < 3


def test_show_tells_the_story_and_draws_the_curves(run: Run, capfd: pytest.CaptureFixture):
    (run.path / "figures" / "curves.png").unlink(missing_ok=True)
    assert cli("show", "last") == 0
    out = capfd.readouterr().out
    for told in (
        run.name,
        "finished",
        "NOT AS EXPECTED",
        "leyden",
        "callbacks=ema",
        "data.limit=200",
        "torch",
        "accuracy",
    ):
        assert told in out
    assert "(best" in out
    with Image.open(run.path / "figures" / "curves.png") as picture:
        assert np.asarray(picture).std() > 10
    assert cli("show", "last", "--config") == 0
    assert capfd.readouterr().out == (run.path / "config.yaml").read_text()


@pytest.mark.parametrize("command", ["ls", "show last --config", "show last", "-sc query=bash", "new project"])
def test_light_commands_do_not_import_torch(run: Run, tmp_path: Path, command: str):
    code = f"import sys; from leyden.cli import main; main({command.split()}); sys.exit('torch' in sys.modules)"
    arguments = [sys.executable, "-c", code.replace("'project'", repr(str(tmp_path / "project")))]
    environment = {**os.environ, "COMP_LINE": "leyden train mod", "COMP_POINT": "16"}
    subprocess.run(arguments, check=True, env=environment, capture_output=True, timeout=60)


def test_a_plot_shows_where_the_values_are():
    flat = plot({"val": [(0, 1.0), (1, 1.0)]}, {}, width=4, height=3).plain.splitlines()
    assert [line.split(" ")[-1].strip("\u2800") != "" for line in flat[:3]] == [False, True, False]
    rising = plot({"val": [(0, 0.0), (10, 1.0), (11, float("nan"))]}, {}, width=4, height=2).plain.splitlines()
    assert rising[0][-4:].startswith("\u2800")
    assert rising[1][-4:].endswith("\u2800")
    assert rising[2].split() == ["0", "10"]
    assert "nothing" in plot({"val": [(0, float("nan"))]}, {}).plain


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8, "8 s"), (750, "12 min 30 s"), (3900, "1 h 05 min"), (273600, "3 d 04 h"), (float("nan"), "")],
)
def test_durations_read_in_two_units(seconds: float, text: str):
    assert duration(seconds) == text


def test_doctor_finds_nothing_to_mend_here(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.setenv("LEYDEN_DATA", str(workdir / "data"))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert cli("doctor") == 0
    out = capfd.readouterr().out
    assert "inside job 77" in out
    assert f"{workdir / 'runs'}: " in out
    assert "WANDB_MODE=offline" in out
    data_lines = [
        line.partition(":")[0].split(maxsplit=2)[2] for line in out.splitlines() if line[3:14] == f"{'data':11}"
    ]
    assert sorted(", ".join(data_lines).split(", ")) == [
        file.stem for file in choices(CONF / "data") if file.stem != "none"
    ]
    pyproject = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    extras = {key: value for key, value in pyproject["project"]["optional-dependencies"].items() if key != "dev"}
    names = {Requirement(text).name for requirements in extras.values() for text in requirements}
    assert names <= {line.split()[1] for line in out.splitlines()}


def test_doctor_flags_what_is_broken(workdir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    real, found = doctor._version, {"lightning": "2.6.3", "hydra-core": "1.2.0", "rich": None}
    monkeypatch.setattr(doctor, "_version", lambda name: found[name] if name in found else real(name))
    monkeypatch.setenv("LEYDEN_RUNS", "/proc/runs")
    assert forked(main, ["doctor"]) == 1
    wrong = [line for line in capfd.readouterr().out.splitlines() if line.startswith("!")]
    assert [line.split()[1] for line in wrong] == ["hydra-core", "lightning", "rich", "runs"]
    assert "steals credentials" in wrong[1]


def test_wandb_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    silent = threading.Event()
    monkeypatch.setattr(doctor.socket, "create_connection", lambda *_: (silent.wait(20), socket.socket())[1])
    monkeypatch.setattr(doctor, "NETWORK_TIMEOUT", 0.1)
    for name in ("WANDB_MODE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    began = time.monotonic()
    (finding,) = doctor.wandb()
    assert time.monotonic() - began < 2
    assert "does not answer" in finding.text
    silent.set()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("new") / "my-thing"
    assert cli("new", str(path)) == 0
    return path


@pytest.mark.slow
def test_a_new_project_meets_its_expectation(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.chdir(project)
    monkeypatch.delenv("LEYDEN_RUNS", raising=False)
    assert cli("train", "experiment=mine") == 0
    assert "as expected: test/accuracy" in capfd.readouterr().out
    assert cli("train", "model=mine", "trainer.max_epochs=1") == 0  # on leyden's own data
    assert cli("train", "-m", "data=mine", "seed=0,1", "+trainer.max_steps=1") == 0  # with leyden's own model
    assert [run.config["name"] for run in list_runs()] == [
        "mine",
        "digits_mine",
        "mine_convnet",
        "mine_convnet",
    ]
    left = [path for path in project.rglob("*") if path.is_file() and "runs" not in path.parts]
    assert not [path for path in left if path.suffix != ".pyc" and "my_project" in path.read_text()]


def test_a_new_projects_tests_pass(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTEST_ADDOPTS", "")
    arguments = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(project),
        "-c",
        str(project / "pyproject.toml"),
        "tests",
    ]
    assert forked(lambda: int(pytest.main(arguments))) == 0


def test_modules_that_know_nothing_of_leyden_train(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.chdir(project)
    monkeypatch.setenv("LEYDEN_RUNS", "boring-runs")
    for group, kind in (("model", "BoringModel"), ("data", "BoringDataModule")):
        target = f"_target_: lightning.pytorch.demos.boring_classes.{kind}\n"
        (project / "conf" / group / "boring.yaml").write_text(target)
    assert cli("train", "model=boring", "data=boring", "trainer.max_epochs=1") == 0
    assert cli("show", "last") == 0
    assert cli("evaluate", "last") == 0
    assert evaluation(list_runs()[0])["checkpoint"] == "step-000000064.ckpt"
    assert cli("predict", "last", "README.md") == REQUEST
    assert "BoringModel has no predict_step" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("full", "full is not empty"),
        ("2nd", "2nd is not a valid name of a Python package"),
        ("class", "class is not a valid name of a Python package"),
        ("json", "there is a module json already"),
        ("torch", "there is a module torch already"),
        ("tests", "there is a module tests already"),
    ],
)
def test_new_refuses(workdir: Path, capfd: pytest.CaptureFixture, name: str, said: str):
    (workdir / "full").mkdir()
    (workdir / "full" / "thesis.tex").touch()
    assert cli("new", name) == REQUEST
    assert said in capfd.readouterr().err
    assert [path.name for path in workdir.rglob("*")] == ["full", "thesis.tex"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("leyden re", {"resume", "rerun"}),
        ("leyden show ", {"last", "RUN"}),
        ("leyden show ti", {"RUN"}),
        ("leyden train mod", {"model=", "model."}),
        ("leyden check -m schedule=c", {"schedule=constant", "schedule=cosine"}),
        ("leyden rerun last optimizer.b", {"optimizer.betas."}),
        ("leyden train model=nonsense optimizer.", set()),
        ("leyden train data=_", set()),
        ("leyden doctor ", set()),
    ],
)
def test_completion(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, line: str, offered: set[str]
):
    monkeypatch.setenv("COMP_LINE", line)
    assert cli("-sc", "query=bash") == 0
    told = capfd.readouterr()
    assert set(told.out.split()) == {run.name if word == "RUN" else word for word in offered}
    assert told.err == ""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(run: Run):
    script = """
        eval "$(leyden -sc install=bash)"
        COMP_LINE="leyden train data=dig" COMP_CWORD=2
        hydra_bash_completion
        echo "${COMPREPLY[@]}"
        complete -p leyden
    """
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[0] == "data=digits"
    assert done.stdout.splitlines()[1].endswith("-F hydra_bash_completion leyden")
