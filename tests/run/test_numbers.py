"""All final numbers of a run belong to one checkpoint, which is named wherever they are shown."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from leyden.callbacks.checkpoint import Checkpoint
from leyden.run.directory import Run
from leyden.run.find import list_runs
from leyden.run.summary import metrics_of
from support.processes import cli

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = ["data.limit=64", "data.batch_size=16", "model.net.width=2"]
UNMONITORED = "model._target_=my.net.Unmonitored"
NET = """
import os
import torch
from lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

class Scripted(LightningModule):
    '''Its accuracy at each validation is written in the config; `val/rare` is measured by every second one.'''

    monitor = ("val/accuracy", "max")

    def __init__(self, accuracy, die_at=None):
        super().__init__()
        self.accuracy, self.die_at, self.count = accuracy, die_at, 0
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        if self.global_step == self.die_at and not os.path.exists("died"):
            open("died", "w").close()
            os.kill(os.getpid(), 9)
        return (self.weight - 1) ** 2

    def validation_step(self, batch, batch_idx):
        epoch = self.current_epoch
        self.log("val/accuracy", float(self.accuracy[epoch]))
        if epoch % 2 == 0:
            self.log("val/rare", float(epoch))

    def test_step(self, batch, batch_idx):
        self.log("test/weight", self.weight)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

class Unmonitored(Scripted):
    monitor = None

class Rows(LightningDataModule):
    def _rows(self):
        return DataLoader(torch.zeros(4, 1), batch_size=2)
    train_dataloader = val_dataloader = test_dataloader = _rows
"""


def scripted(accuracy: list, *overrides: str) -> Run:
    """Train four epochs of two steps with the accuracies given."""
    Path("my").mkdir(exist_ok=True)
    Path("my/__init__.py").touch()
    Path("my/net.py").write_text(NET)
    for group, name in (("model", "Scripted"), ("data", "Rows")):
        Path("conf", group).mkdir(parents=True, exist_ok=True)
        Path("conf", group, "mine.yaml").write_text(f"_target_: my.net.{name}\n")
    Path("conf/project.yaml").write_text("targets: [my]\n")
    text = "[" + ",".join(map(str, accuracy)) + "]"
    own = [f"+model.accuracy={text}", f"trainer.max_epochs={len(accuracy)}", "trainer.log_every_n_steps=1"]
    assert cli("train", "model=mine", "data=mine", *own, *overrides) in (0, -9, 9)
    return list_runs()[-1]


def test_the_numbers_of_a_run_are_those_of_the_checkpoint_that_was_tested(workdir: Path, capfd: pytest.CaptureFixture):
    run = scripted([0.5, 0.875, 0.75, 0.625], "expect={metric: val/accuracy, at_least: 0.8}")
    status = run.status
    assert status["checkpoint"] == {"is": "best", "step": 4, "metric": "val/accuracy", "value": 0.875, "mode": "max"}
    assert status["metrics"]["val/accuracy"] == pytest.approx(0.875)
    assert status["metrics"]["test/weight"] == pytest.approx(float(weight(run, "best")))
    assert "val/rare" not in status["metrics"]  # it was measured of other weights
    assert status["last_metrics"]["val/accuracy"] == pytest.approx(0.625)
    assert status["last_metrics"]["val/rare"] == 2
    assert "test/weight" not in status["last_metrics"]
    assert status["expect"] == [{"text": "val/accuracy is 0.875, expected at least 0.8", "held": True}]
    title = "best checkpoint, step 4 (val/accuracy 0.875, the highest)"
    assert title in capfd.readouterr().out
    for command in (["show", "last"], ["evaluate", "last"], ["evaluate", "last", "--split", "val"]):
        assert cli(*command) == 0
        assert title in capfd.readouterr().out
    assert metrics_of(run)["val/accuracy"] == pytest.approx(0.875)
    assert metrics_of(run)["test/weight"] == status["metrics"]["test/weight"]


def test_values_of_the_test_are_logged_at_the_step_of_the_checkpoint_tested(workdir: Path):
    run = scripted([0.5, 0.875, 0.75, 0.625])
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "test/weight" in row] == [4]


def test_of_equally_good_checkpoints_the_later_is_the_best(workdir: Path):
    run = scripted([0.5, 0.875, 0.875, 0.625])
    assert run.status["checkpoint"]["step"] == 6
    assert run.best_checkpoint() == run.path / "checkpoints" / "step-000000006.ckpt"
    assert run.status["metrics"]["val/rare"] == 2


def weight(run: Run, name: str) -> torch.Tensor:
    return torch.load(run.path / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]["weight"]


def test_what_is_not_a_number_is_never_the_best(workdir: Path, capfd: pytest.CaptureFixture):
    run = scripted(["nan", 0.2, 0.1, "nan"])
    assert run.status["checkpoint"]["step"] == 4
    run = scripted(["nan", "nan"])
    assert run.status["checkpoint"] == {"is": "last", "step": 4}
    assert "last checkpoint, step 4\n" in capfd.readouterr().out.replace(" \n", "\n")


def test_without_a_monitor_the_last_checkpoint_is_tested_and_named(workdir: Path, capfd: pytest.CaptureFixture):
    run = scripted([0.875, 0.5], UNMONITORED, "+trainer.max_steps=3", "trainer.max_epochs=-1")
    assert run.status["checkpoint"] == {"is": "last", "step": 3}
    assert "val/accuracy" not in run.status["metrics"]  # these weights were not validated
    assert run.status["last_metrics"]["val/accuracy"] == pytest.approx(0.875)
    run = scripted([0.875, 0.5], UNMONITORED)
    assert run.status["metrics"]["val/accuracy"] == pytest.approx(0.5)
    assert "last checkpoint, step 4" in capfd.readouterr().out


def test_what_the_best_checkpoint_measured_survives_a_kill(workdir: Path):
    run = scripted([0.5, 0.875, 0.75, 0.625], "+model.die_at=7")
    assert run.status["state"] == "killed"
    assert cli("resume", str(run.path)) == 0
    whole = scripted([0.5, 0.875, 0.75, 0.625])
    for fact in ("metrics", "checkpoint", "last_metrics"):
        assert run.status[fact] == whole.status[fact]


@pytest.mark.slow
def test_a_sweep_learns_what_the_best_checkpoint_measured(workdir: Path):
    scripted([0.5, 0.875, 0.75, 0.625])
    own = [
        "model=mine",
        "data=mine",
        "trainer.max_epochs=4",
        "+model.accuracy=[0.5,0.875,0.75,0.625],[0.8,0.1,0.1,0.75]",
    ]
    assert cli("train", "-m", *own) == 0
    from leyden.sweep.directory import list_sweeps

    [sweep] = list_sweeps()
    assert [trial.value for trial in sweep.study.trials] == pytest.approx([0.875, 0.8])


@pytest.mark.parametrize(("mode", "values", "best"), [("max", [1, 3, 3, 2], 2), ("min", [2, 1, 1, 3], 2)])
def test_ties_by_mode(tmp_path: Path, mode: str, values: list[float], best: int):
    checkpoint = Checkpoint(tmp_path, {}, SimpleNamespace(), monitor="val/x", mode=mode)  # pyrefly: ignore
    for step, value in enumerate([float("nan"), *values, float("nan")]):
        checkpoint._validation_metrics = {"val/x": value}
        checkpoint._update_metrics(SimpleNamespace(callback_metrics={"val/x": value}), step)  # pyrefly: ignore
    assert checkpoint.best["step"] == best + 1


def test_a_run_that_goes_on_says_no_numbers_of_its_earlier_end(workdir: Path):
    """A pruned run that is trained to its end has old metrics no longer, as soon as it trains."""
    assert cli("train", *SMALL) == 0
    run = list_runs()[-1]
    run.set_status("pruned")
    run.forget_results()
    run.set_status("running")
    assert not {"metrics", "checkpoint", "last_metrics"} & run.status.keys()
