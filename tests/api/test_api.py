"""`import leyden` gives what the commands give, costs nothing, and leaves the caller's process as it was."""

import inspect
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch

import leyden
from leyden.api import run as api_run
from leyden.lazy_imports import public_names
from support.processes import cli, forked
from support.training import at_step

TINY = ["data.limit=100", "data.batch_size=20", "model.net.width=2", "trainer.max_epochs=2", "name=tiny"]
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two runs that Python has trained."""
    folder, before = tmp_path_factory.mktemp("python"), Path.cwd()
    os.chdir(folder)
    for seed in (0, 1):
        leyden.train([*TINY, f"seed={seed}"])
    os.chdir(before)
    return folder


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> leyden.Run:
    """The newer one."""
    monkeypatch.chdir(trained)
    monkeypatch.delenv("LEYDEN_RUNS", raising=False)
    return leyden.Run("last")


def test_importing_leyden_loads_nothing_heavy():
    heavy = "{'torch', 'lightning', 'hydra', 'numpy', 'omegaconf', 'rich', 'pydantic'}"
    code = f"import sys, leyden; dir(leyden); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_public_name_is_documented_and_typed():
    assert sorted(public_names("leyden")) == sorted(leyden.__all__)
    assert set(leyden.__all__) < set(dir(leyden))
    for value in (getattr(leyden, name) for name in leyden.__all__):
        members = vars(value).items() if inspect.isclass(value) else [(value.__name__, value)]
        for name, member in [(name, member) for name, member in members if not name.startswith("_")]:
            function = member.fget if isinstance(member, property) else member
            if inspect.isfunction(function):
                assert function.__doc__, name
                assert inspect.signature(function).return_annotation is not inspect.Signature.empty, name


def test_a_run_has_what_its_folder_holds(run: leyden.Run):
    assert run.status["state"] == "finished"
    assert run.config["seed"] == 1
    assert run.manifest["command"] == f"leyden train {' '.join(TINY)} seed=1"
    assert run.results["test/accuracy"] == run.status["metrics"]["test/accuracy"]
    assert run.path / "figures" / "test" / "confusion.png" in run.figures
    table = run.metrics()
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert list(table["step"]) == sorted({line["step"] for line in lines})
    values = {(line["step"], name): line[name] for line in lines for name in line if "/" in name}
    for name in {name for _, name in values}:
        for step, value in zip(table["step"], table[name], strict=True):
            assert value == values.get((step, name))


def test_runs_are_listed_newest_first(run: leyden.Run):
    assert [other.config["seed"] for other in leyden.runs()] == [1, 0]
    assert [other.path for other in leyden.runs(run.name)] == [run.path]
    assert len(leyden.runs(run.path.parent)) == len(leyden.runs("tiny")) == 2
    assert leyden.runs("huge") == []
    assert (
        repr(leyden.runs("tiny")[0]) == repr(run) == f"Run({run.name!r})  finished  test/accuracy {accuracy(run):.4g}"
    )


def test_answers_and_metrics_equal_those_of_the_command(run: leyden.Run):
    assert cli("evaluate", run.name, "--save-predictions") == 0
    (file,) = run.path.glob("evaluations/*/predictions.npz")
    answers = run.answers("test")
    with np.load(file) as saved:
        assert {name for name in saved if saved[name].ndim} == set(answers)
        assert all(np.array_equal(saved[name], answers[name]) for name in answers)
    assert run.evaluate() == json.loads((file.parent / "metrics.json").read_text())["metrics"]
    assert len(list(run.path.glob("evaluations/*/log.txt"))) == 2


def test_a_loaded_model_answers_its_data(run: leyden.Run):
    model, data = run.load()
    assert not model.training
    batches = list(data.test_dataloader())
    with torch.no_grad():
        probability = torch.cat([model.predict_step(batch, number) for number, batch in enumerate(batches)])
    answers = run.answers("test")
    assert np.array_equal(probability.numpy(), answers["probability"])
    hits = probability.argmax(1) == torch.cat([batch.label for batch in batches])
    assert hits.double().mean().item() == pytest.approx(accuracy(run), abs=1e-6)  # a mean of float32


def test_new_samples_are_predicted(run: leyden.Run):
    pictures = np.random.default_rng(0).integers(0, 255, (3, 8, 8), np.uint8)
    rows = run.predict(list(pictures), checkpoint="last")
    assert [row["name"] for row in rows] == ["row 0", "row 1", "row 2"]
    assert all(0 < row["probability"] <= 1 for row in rows)


def test_the_callers_process_is_left_as_it_was(run: leyden.Run, undrawn: None):
    torch.manual_seed(7)
    before = process_state()
    other = leyden.train([*TINY, "trainer.max_epochs=1", "trainer.benchmark=true", "threads=2", "name=other"])
    other.evaluate(["trainer.benchmark=true"])
    other.load("last")
    assert process_state() == before
    shutil.rmtree(other.path)


def process_state() -> dict[str, Any]:
    """Everything that a run sets in its own process."""
    loggers = {name: logging.getLogger(name) for name in ("", "leyden", "py.warnings", "lightning.pytorch")}
    return {
        "cwd": Path.cwd(),
        "path": list(sys.path),
        "environ": dict(os.environ),
        "backend": matplotlib.rcParams._get_backend_or_none(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)],
        "logging": {name: (log.level, log.propagate, list(log.handlers)) for name, log in loggers.items()},
        "warnings": (warnings.showwarning, list(warnings.filters)),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": (torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark),
        "random": (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()),
    }


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "typo": (lambda: leyden.train(["trainer.max_epohcs=5"]), "did you mean trainer.max_epochs?"),
    "value": (lambda: leyden.compose(["optimizer.lr=abc"]), "optimizer.lr=abc: should be a valid number"),
    "flag": (lambda: leyden.train(["-m", "seed=0,1"]), "-m is for the command line: in Python, call leyden.train for"),
    "text": (
        lambda: leyden.train("model=convnet seed=1"),
        "overrides are a list of texts: ['model=convnet', 'seed=1']",
    ),
    "slurm": (lambda: leyden.train(["hydra/launcher=slurm"]), "the command leyden train submits to SLURM's queue"),
    "run": (lambda: leyden.Run("nowhere"), "nowhere: no such run in runs"),
    "checkpoint": (lambda: leyden.Run().load("step-7"), "step-7"),
    "split": (lambda: leyden.Run().answers("train"), "split='train': should be 'test' or 'val'"),
    "sample": (lambda: leyden.Run().predict(np.zeros((5, 5, 5, 5), np.uint8)), "the images here are [1, 8, 8]"),
    "no groups": (lambda: leyden.compare(), "takes one or more groups"),
    "metric": (lambda: leyden.compare("tiny", metric="test/fun"), "test/fun"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(run: leyden.Run, mistake: str):
    function, text = MISTAKES[mistake]
    with pytest.raises(leyden.UserError) as caught:
        function()
    (line,) = caught.value._render_traceback_()  # what a notebook shows
    assert line.startswith("UserError: ")
    assert text in line
    assert "\n" not in line
    assert len(leyden.runs()) == 2


def test_a_run_that_fails_says_where(workdir: Path, undrawn: None):
    for folder in ("conf/model", "lab"):
        (workdir / folder).mkdir(parents=True)
    (workdir / "conf/project.yaml").write_text("targets: [lab]\n")
    (workdir / "conf/model/bad.yaml").write_text("defaults: [convnet]\nnet:\n  _target_: lab.nets.Bad\n")
    source = "from leyden.nets import ConvNet\n\n\nclass Bad(ConvNet):\n    def forward(self, image):\n        return image / None\n"
    (workdir / "lab/nets.py").write_text(source)
    with pytest.raises(leyden.RunError, match=r"TypeError: .* at lab/nets.py:6 in forward \(the traceback is in runs/"):
        leyden.train(["model=bad", *TINY])
    (run,) = leyden.runs()
    assert run.status["state"] == "failed"
    assert "lab/nets.py:6" in run._repr_html_()


def test_an_interrupted_run_says_how_it_goes_on_and_does(workdir: Path, undrawn: None):
    def interrupt() -> int:
        at_step(3, lambda: os.kill(os.getppid(), signal.SIGINT))
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match=r"stopped by SIGINT; go on with leyden.Run\('tiny/.*'\).resume()"):
            leyden.train(TINY)
        assert signal.getsignal(signal.SIGINT) is handler
        return 7

    assert forked(interrupt) == 7
    (run,) = leyden.runs()
    assert run.status["state"] == "interrupted"
    assert run.resume().status["state"] == "finished"
    assert run.resume().status["step"] == 10  # nothing is left to do


def test_a_comparison_says_what_the_command_says(run: leyden.Run, capfd: pytest.CaptureFixture):
    first, second = leyden.runs("tiny")
    assert cli("compare", f"new={first.name}", f"old={second.name}", "--metric", "test/accuracy") == 0
    printed = capfd.readouterr().out
    comparison = leyden.compare(new=first, old=[second], metric="test/accuracy")
    assert comparison.sentences
    assert all(sentence in printed and sentence in repr(comparison) for sentence in comparison.sentences)
    assert [(row["group"], row["mean"]) for row in comparison.rows] == [
        ("new", accuracy(first)),
        ("old", accuracy(second)),
    ]
    assert list(comparison.table()["group"]) == ["new", "old"]
    assert [row["group"] for row in leyden.compare(first, second).rows[:2]] == [first.name, second.name]


def test_a_table_is_of_pandas_where_there_is_no_polars(run: leyden.Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(api_run, "find_spec", lambda name: name == "pandas")
    assert type(run.metrics()).__module__.startswith("pandas")
    monkeypatch.setattr(api_run, "find_spec", lambda name: False)
    with pytest.raises(leyden.UserError, match="a table needs polars or pandas, and neither is installed: pip install"):
        run.metrics()


def test_what_a_notebook_shows_runs_no_script(run: leyden.Run):
    shown = run._repr_html_()
    assert all(text in shown for text in (run.name, "finished", "data.limit=100", "accuracy", 'src="data:image/png'))
    hostile = run.path.parent / SCRIPT.replace("/", "")
    shutil.copytree(run.path, hostile, symlinks=True)
    try:
        status = json.loads((hostile / "status.json").read_text())
        status |= {"reason": SCRIPT, "expect": [{"text": SCRIPT, "held": True}]}
        status["metrics"][f"val/{SCRIPT}"] = 0.5
        status["checkpoint"] |= {"is": SCRIPT, "metric": SCRIPT}
        (hostile / "status.json").write_text(json.dumps(status))
        manifest = json.loads((hostile / "manifest.json").read_text())
        manifest["raw"]["checkpoint"]["monitor"] = rf"val/$\frac{{{SCRIPT}"
        (hostile / "manifest.json").write_text(json.dumps(manifest | {"command": f"\x1b[31m{SCRIPT}"}))
        with (hostile / "metrics.jsonl").open("a") as file:
            print(json.dumps({"step": 9, rf"val/$\frac{{{SCRIPT}": 1.0, "val/loss": SCRIPT}), file=file)
        for text in (leyden.Run(hostile)._repr_html_(), leyden.compare(leyden.Run(hostile), run)._repr_html_()):
            assert "<script" not in text
            assert "&lt;script&gt;" in text
            assert "\x1b" not in text
        assert "\x1b" not in repr(leyden.Run(hostile))
    finally:
        shutil.rmtree(hostile)


@pytest.mark.parametrize("name", ["status.json", "manifest.json", "metrics.jsonl", "config.yaml"])
def test_a_damaged_run_is_shown(run: leyden.Run, tmp_path: Path, name: str):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy, symlinks=True)
    damaged = leyden.Run(copy)
    (copy / name).write_text('{"format": 99}' if name == "status.json" else '{"a": [1, "')
    assert "copy" in damaged._repr_html_()
    assert "copy" in repr(damaged)


def test_a_number_that_no_float_holds_is_shown(run: leyden.Run, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy, symlinks=True)
    (copy / "metrics.jsonl").write_text(f'{{"step": 1, "train/loss": {10**400}}}\n')
    assert "broken" in leyden.Run(copy)._repr_html_()


@pytest.mark.slow
def test_a_plain_script_trains_without_a_guard_and_gets_the_first_signal(workdir: Path):
    """A signal that comes while the first process is being made, which takes seconds, is not lost."""
    (workdir / "script.py").write_text(
        "import os, signal, sys, threading, leyden\n"
        "from leyden.launch import children\n"
        f"leyden.train({TINY})\n"
        "assert 'torch' not in sys.modules\n"
        "server = children.forkserver._forkserver\n"
        "server._stop_unlocked()\n"  # the next run waits for a new server, as the first one did
        "threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        f"    leyden.train({[*TINY, 'trainer.max_epochs=500']})\n"
        "except KeyboardInterrupt as interrupt:\n"
        "    print(interrupt)\n"
    )
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "stopped by SIGINT; go on with leyden.Run(" in done.stdout
    assert [run.status["state"] for run in leyden.runs()] == ["interrupted", "finished"]


@pytest.mark.slow
def test_every_rank_of_torchrun_gets_the_run_or_the_refusal(workdir: Path):
    (workdir / "script.py").write_text(
        "import os, leyden\n"
        "file = open(f\"rank{os.environ['RANK']}\", 'w')\n"
        "for overrides in (['trainer.max_epohcs=1'], ['trainer.devices=4'], []):\n"
        "    try:\n"
        f"        run = leyden.train([*{TINY}, 'accelerator=torchrun', 'trainer.accelerator=cpu', *overrides])\n"
        "        print(run.name, run.status['state'], file=file)\n"
        "    except leyden.UserError as error:\n"
        "        print(error, file=file)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "script.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    first, second, third = (workdir / "rank0").read_text().splitlines()
    assert (workdir / "rank1").read_text() == (workdir / "rank0").read_text()
    assert "did you mean trainer.max_epochs?" in first
    assert "trainer.devices=4" in second
    (run,) = leyden.runs()
    assert third == f"{run.name} finished"


def accuracy(run: leyden.Run) -> float:
    return run.results["test/accuracy"]
