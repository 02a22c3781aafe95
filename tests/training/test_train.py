"""`leyden train` trains modules that know nothing of leyden, with any logger, and every experiment of the repository."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from leyden.cli import main
from leyden.config.locations import CONF
from leyden.run.find import list_runs
from support.datasets import ETTH1, FASHION_MNIST, MULTI30K, SHAKESPEARE, missing
from support.files import write_files
from support.processes import cli, forked
from support.refused import refused
from support.training import SMALL, at_step, last_checkpoint, train_and_resume

FOREIGN = {
    "conf/project.yaml": "targets: [cat_lab]\n",
    "conf/model/mine.yaml": "_target_: cat_lab.Model\n",
    "conf/data/mine.yaml": "_target_: cat_lab.Data\n",
    "cat_lab.py": '''
import numpy as np, random, torch
from lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset

class Noisy(Dataset):
    """Draws from every generator there is, like a careless transform."""
    def __len__(self): return 60
    def __getitem__(self, i): return torch.full((4,), i / 60) + torch.rand(4) + np.random.rand() + random.random()

class Data(LightningDataModule):
    def train_dataloader(self): return DataLoader(Noisy(), 6, shuffle=True)
    def val_dataloader(self): return DataLoader(torch.ones(12, 4), 6)

class Model(LightningModule):
    def __init__(self, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean() + 0.01 * float(np.random.rand())
        self.log("train_loss", loss)
        return loss
    def validation_step(self, batch, batch_idx): self.log("val_loss", self.net(batch).square().mean())
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.hparams.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=0, threshold=10.0), "monitor": "val_loss"}}
''',
}
MINE = ["model=mine", "data=mine", "trainer.max_epochs=4", "trainer.log_every_n_steps=3"]


@pytest.fixture
def cat_lab(workdir: Path) -> Path:
    return write_files(workdir, FOREIGN)


def test_a_module_that_knows_nothing_of_leyden_resumes_exactly(cat_lab: Path):
    whole, resumed = train_and_resume(27, *MINE, every_n_steps=4)
    assert last_checkpoint(whole)["hyper_parameters"] == last_checkpoint(resumed)["hyper_parameters"]


def test_a_module_that_takes_no_optimizer_is_not_given_one(cat_lab: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *MINE, "optimizer.lr=1") == 2
    assert "optimizer.lr=1 would change nothing: this model does not read ${optimizer}" in capfd.readouterr().err


def test_lightnings_own_demo_modules_train(workdir: Path):
    demo = "_target_: lightning.pytorch.demos.boring_classes."
    for group, name in (("model", "BoringModel"), ("data", "BoringDataModule")):
        (workdir / "conf" / group).mkdir(parents=True)
        (workdir / "conf" / group / "boring.yaml").write_text(f"{demo}{name}\n")
    assert cli("train", "model=boring", "data=boring", "trainer.max_epochs=1") == 0
    assert list_runs()[0].status["state"] == "finished"


def test_a_run_holds_what_it_needs_to_be_understood(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *SMALL, "seed=3", "expect={metric:test/accuracy,at_least: 1}") == 0
    (run,) = list_runs()
    assert run.config["data"]["seed"] == 3
    assert run.status["state"] == "finished"
    assert run.status["expect"] == [
        {"text": capfd.readouterr().out.split("NOT AS EXPECTED: ")[1].split("\n")[0], "held": False}
    ]
    manifest = run.manifest
    assert manifest["overrides"] == [*SMALL, "seed=3", "expect={metric:test/accuracy,at_least: 1}"]
    assert manifest["data"]["train"]["size"] == 128
    assert len({split["sha256"] for split in manifest["data"].values()}) == 3
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss", "train/accuracy", "train/lr", "val/accuracy", "test/f1"} <= {k for row in rows for k in row}
    assert (run.path / "figures/test/confusion.png").stat().st_size > 1000
    kept = {p.name for p in (run.path / "checkpoints").iterdir()}
    assert {"last.ckpt", "best.ckpt", "step-000000008.ckpt", "step-000000012.ckpt"} <= kept
    assert len(kept) <= 5
    assert "epoch 3/3" in (run.path / "log.txt").read_text()


# by data set: what it needs here, and how to say so
NEEDS = {
    "cifar10": (None, []),
    "fashion_mnist": (FASHION_MNIST, []),
    "shakespeare": (SHAKESPEARE, [f"data.path={SHAKESPEARE}"]),
    "multi30k": (MULTI30K, [f"data.data_dir={MULTI30K.parent}", "data.eval_batch_size=16", "model.beam_size=2"]),
    "etth1": (ETTH1, [f"data.path={ETTH1}"]),
}
SHORT = ["data.limit=128", "trainer.max_epochs=1", "+trainer.limit_val_batches=2", "+trainer.limit_test_batches=2"]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SLOW = {
    "char_lstm",
    "char_mingru",
    "char_transformer",
    "cnn_fashion_mnist_best",
    "dcgan_fashion_mnist",
    "forecast_etth1",
    "gan_fashion_mnist",
    "gru_japanese_vowels",
    "r3gan_fashion_mnist",
    "resnet18_fashion_mnist",
    "resnet9_fashion_mnist",
    "transformer_stdlib_docs",
    "translate_multi30k",
    "translate_multi30k_gpu",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in EXPERIMENTS]
)
def test_every_experiment_composes_states_its_claim_and_takes_a_step(
    workdir: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert f"leyden train experiment={name}" in text
    stated = yaml.safe_load(text)
    assert "expect" in stated
    assert cli("check", f"experiment={name}") == 0
    [data] = [choice["override /data"] for choice in stated["defaults"] if "override /data" in choice] or ["digits"]
    place, overrides = NEEDS.get(data, (workdir, []))
    if place is None or not place.exists():
        pytest.skip(missing(place) if place else f"{data} is not here")
    monkeypatch.setenv("LEYDEN_DATA", str(workdir / "data"))  # token files
    width = ["model.net.width=4"] if "resnet9" in name or "resnet18" in name else []
    accelerator = ["accelerator=cpu"] if "accelerator" in text else []
    samples = ["model.num_samples=200"] if "override /feature" in text else []
    changes = [*SHORT, *overrides, *width, *accelerator, *samples, "data.batch_size=64"]
    assert cli("train", f"experiment={name}", *changes) == 0


def test_a_development_run_is_no_result_and_a_profiler_reports_into_the_run(
    workdir: Path, capfd: pytest.CaptureFixture
):
    flags = ["trainer.fast_dev_run=2", "trainer.profiler=simple", "expect={metric: test/accuracy, at_least: 0.9}"]
    assert cli("train", "data.limit=64", "model.net.width=2", *flags) == 0
    (run,) = list_runs()
    assert "run_training_batch" in (run.path / "profile" / "fit-report.txt").read_text()
    capfd.readouterr()
    assert main(["ls"]) == 0
    assert "fast_dev_run: " in capfd.readouterr().out
    assert f"{run.name} is a fast_dev_run" in refused(capfd, "compare", run.name)


@pytest.mark.slow
def test_wandb_and_tensorboard_follow_a_run_through_a_resume(workdir: Path):
    pytest.importorskip("tensorboard")
    arguments = ["data.limit=128", "data.batch_size=32", "trainer.max_epochs=3", "logger=[wandb,tensorboard]"]
    forked(lambda: (at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM)), main(["train", *arguments])))
    assert cli("resume", "last") == 0
    run = list_runs()[0]
    folders = sorted((run.path / "wandb").glob("offline-run-*"))
    identity = json.loads((run.path / "wandb.json").read_text())["id"]
    assert len(folders) == 2
    assert all(folder.name.endswith(identity) for folder in folders)
    inspect = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", "--json"]
    shown = subprocess.run([*inspect, folders[1]], capture_output=True, text=True, check=True).stdout
    assert json.loads(shown)["summary"]["test/accuracy"] == run.status["metrics"]["test/accuracy"]
    assert list((run.path / "tensorboard").glob("events*"))


def test_a_lazy_layer_has_no_number_of_parameters_yet(workdir: Path):
    (workdir / "conf").mkdir()
    (workdir / "conf" / "project.yaml").write_text("targets: [lazy]\n")
    (workdir / "lazy.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self, **_):\n        super().__init__(nn.Flatten(), nn.LazyLinear(10))\n"
    )
    assert cli("train", "data.limit=64", "trainer.max_epochs=1", "test=false", "model.net._target_=lazy.Net") == 0
    assert "  0 parameters  " in (list_runs()[0].path / "log.txt").read_text()
