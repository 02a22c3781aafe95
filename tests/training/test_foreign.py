"""A LightningModule that knows nothing of leyden runs as it is: its own loaders, names, callbacks and optimizers.

It resumes exactly after SIGKILL, and leyden reads what it logs.
"""

import json
from pathlib import Path
from typing import cast

import pytest
import yaml

from leyden.callbacks.checkpoint import Checkpoint
from leyden.config.run_config import RunConfig
from leyden.distributed.signals import Stop
from leyden.run.directory import Run
from leyden.run.find import list_runs
from support.files import write_files
from support.processes import cli
from support.refused import refused
from support.training import last_checkpoint, measured, train_and_resume

LAB = {
    "conf/project.yaml": "targets: [lab]\n",
    "conf/model/own.yaml": "_target_: lab.Own\n",
    "conf/model/tutorial_gan.yaml": "_target_: lab.GAN\n",
    "conf/model/bare.yaml": "_target_: lab.Bare\n",
    "conf/model/memory.yaml": "_target_: lab.Memory\n",
    "conf/callbacks/shared.yaml": "mine: {_target_: lab.Shared, dirpath: ../shared}\n",
    "conf/data/split.yaml": "_target_: lab.Split\n",
    "conf/callbacks/stock.yaml": """
model_checkpoint:
  _target_: lightning.pytorch.callbacks.ModelCheckpoint
  monitor: val_loss/dataloader_idx_1
  filename: best-{epoch}
  save_top_k: 2
every: {_target_: lightning.pytorch.callbacks.ModelCheckpoint, every_n_train_steps: 4, save_top_k: -1}
stop: {_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss/dataloader_idx_0, patience: 10}
rate: {_target_: lightning.pytorch.callbacks.LearningRateMonitor, logging_interval: step}
summary: {_target_: lightning.pytorch.callbacks.ModelSummary}
""",
    "lab.py": '''
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassRecall

def draw(size):
    """Draws its data when a loader is asked for, from the global generator."""
    x = torch.rand(size, 4)
    return TensorDataset(x, (x.sum(1) > 2).long())

class Bare(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
        self.train_acc = MulticlassAccuracy(2)
        self.scores = MetricCollection({"f1": MulticlassF1Score(2), "recall": MulticlassRecall(2)})
    def training_step(self, batch, batch_idx):
        logits, label = self.net(batch[0]), batch[1]
        loss = F.cross_entropy(logits, label)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.train_acc(logits, label)
        self.log("train_acc", self.train_acc, on_step=False, on_epoch=True)
        self.scores.update(logits, label)
        return loss
    def on_train_epoch_end(self):
        self.log_dict({f"train_{name}": value for name, value in self.scores.compute().items()})
        self.scores.reset()
    def configure_optimizers(self): return torch.optim.Adam(self.parameters(), 0.05)

class Own(Bare):
    """Has loaders of its own, two for each evaluation."""
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        logits = self.net(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]), prog_bar=True)
        self.log("hits", (logits.argmax(1) == batch[1]).float().mean())
    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("test_f1", F.cross_entropy(self.net(batch[0]), batch[1]))
    def train_dataloader(self): return DataLoader(draw(30), 5, shuffle=True)
    def val_dataloader(self): return [DataLoader(draw(10), 5), DataLoader(draw(5), 5)]
    test_dataloader = val_dataloader

class Shared(ModelCheckpoint):
    """May write anywhere, since it is a class of the project's."""

class Split(LightningDataModule):
    """Splits its samples anew in every stage, as many projects do."""
    def setup(self, stage): self.parts = random_split(TensorDataset(torch.arange(30.0)[:, None]), [20, 10])
    def train_dataloader(self): return DataLoader(self.parts[0], 5)
    def test_dataloader(self): return DataLoader(self.parts[1], 5)

class Memory(LightningModule):
    """Counts the test samples that it was trained on."""
    def __init__(self):
        super().__init__()
        self.net, self.seen = nn.Linear(1, 1), set()
    def training_step(self, batch):
        self.seen |= set(batch[0].flatten().tolist())
        return self.net(batch[0]).square().mean()
    def test_step(self, batch, batch_idx):
        self.log("test_seen", float(len(self.seen & set(batch[0].flatten().tolist()))), reduce_fx="sum")
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), 1e-4)

class GAN(LightningModule):
    """Steps two optimizers by hand, and uses the first logger's client, as in Lightning's tutorial."""
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.Tanh())
        self.discriminator = nn.Linear(16, 1)
    def training_step(self, batch):
        real, (g, d) = batch[0].repeat(1, 4), self.optimizers()
        z, ones = torch.randn(len(real), 4), torch.ones(len(real), 1)
        self.toggle_optimizer(g)
        g_loss = F.binary_cross_entropy_with_logits(self.discriminator(self.generator(z)), ones)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        g.step()
        g.zero_grad()
        self.untoggle_optimizer(g)
        self.toggle_optimizer(d)
        fake = self.discriminator(self.generator(z).detach())
        d_loss = F.binary_cross_entropy_with_logits(torch.cat([self.discriminator(real), fake]),
                                                    torch.cat([ones, torch.zeros_like(ones)]))
        self.log("d_loss", d_loss, prog_bar=True)
        self.manual_backward(d_loss)
        d.step()
        d.zero_grad()
        self.untoggle_optimizer(d)
    def on_train_epoch_end(self):
        self.logger.log_hyperparams({"latent": 4})
        client, epoch = self.logger.experiment, self.current_epoch
        client.add_image("generated/pictures", self.generator(torch.ones(1, 4)).view(1, 4, 4) / 2 + 0.5, epoch)
        figure = Figure()
        figure.add_subplot()
        client.log({"spread": torch.tensor(0.5), "curve": figure})
        client.add_histogram("z", torch.ones(3), epoch)
    def configure_optimizers(self):
        return [torch.optim.Adam(net.parameters(), 0.01) for net in (self.generator, self.discriminator)], []
    def train_dataloader(self): return DataLoader(draw(30), 5, shuffle=True)
''',
}
SHORT = ["data=none", "trainer.max_epochs=2", "trainer.log_every_n_steps=2"]


@pytest.fixture
def lab(workdir: Path) -> Path:
    return write_files(workdir, LAB)


def files(run: Run, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(run.path)) for path in run.path.rglob(pattern))


def test_a_module_with_its_own_loaders_and_stock_callbacks_resumes_exactly(lab: Path, capfd: pytest.CaptureFixture):
    monitor = "checkpoint.monitor=val_loss/dataloader_idx_1"
    expect = "expect={metric: test_f1/dataloader_idx_0, at_most: 9}"
    # killed after `every` has saved step 8, resumed from step 6
    runs = train_and_resume(9, "model=own", "callbacks=stock", monitor, expect, *SHORT, every_n_steps=6)
    whole, resumed = runs
    assert measured(whole) == measured(resumed)
    assert whole.status["metrics"] == resumed.status["metrics"]
    best, second = "val/loss/dataloader_idx_1", "val/hits/dataloader_idx_1"
    names = {best, second, "train/loss_epoch", "train/acc", "train/f1", "test/f1/dataloader_idx_1"}
    assert names <= whole.status["metrics"].keys()
    assert not [name for name in whole.status["metrics"] if not name.startswith(("train/", "val/", "test/"))]
    assert {"train/loss_step", "train/lr-Adam", *names} <= {name for row in measured(whole) for name in row}
    assert whole.status["checkpoint"]["metric"] == best
    assert whole.status["expect"][0]["held"]
    out = capfd.readouterr().out
    assert "epoch 2/2  train loss_step " in out
    assert " loss/dataloader_idx_0 " in out
    assert "Trainable params" in out
    for run in runs:
        saved = files(run, "*.ckpt")
        assert [name for name in saved if "every" in name] == [
            *(f"checkpoints/every/epoch={epoch}-step={step}.ckpt" for epoch, step in ((0, 4), (1, 12), (1, 8))),
        ]
        assert [name for name in saved if "best-" in name] == [
            f"checkpoints/model_checkpoint/best-epoch={k}.ckpt" for k in (0, 1)
        ]
    check_that_it_is_read(whole, capfd)


def check_that_it_is_read(run: Run, capfd: pytest.CaptureFixture) -> None:
    """What a module with two loaders has logged is in every table."""
    assert cli("ls", "--json") == 0
    assert json.loads(capfd.readouterr().out.splitlines()[0])["metric"] == "val/loss/dataloader_idx_1"
    assert cli("show", run.name) == 0
    assert "loss/dataloader_idx_1" in capfd.readouterr().out
    assert cli("compare", run.name, "last", "--metric", "test_f1/dataloader_idx_0:lower") == 0
    assert "test/f1/dataloader_idx_0" in capfd.readouterr().out
    assert cli("evaluate", run.name, "--split", "val") == 0
    assert "val/hits/dataloader_idx_0" in capfd.readouterr().out
    assert "with data=none there is no data module" in refused(capfd, "predict", run.name, "lab.py")


def test_checkpoints_outside_of_the_run_stay(lab: Path):
    for _ in range(2):
        assert cli("train", "model=own", "callbacks=shared", *SHORT, "trainer.max_epochs=1") == 0
    names = sorted(path.name for path in (lab.parent / "shared").iterdir())
    assert names == ["epoch=0-step=6-v1.ckpt", "epoch=0-step=6.ckpt"]


def test_a_monitor_that_an_older_leyden_froze_is_the_same_metric(tmp_path: Path):
    assert Checkpoint(tmp_path, cast(RunConfig, {}), Stop(), monitor="val_loss").monitor == "val/loss"


def test_a_resumed_run_asks_for_loaders_in_the_same_epochs(lab: Path):
    reload = ["+trainer.reload_dataloaders_every_n_epochs=2", "trainer.max_epochs=5"]
    whole, resumed = train_and_resume(21, "model=own", *SHORT, *reload)  # in epoch 3; the data change in epoch 4
    assert measured(whole) == measured(resumed)


def test_a_gan_of_two_optimizers_takes_one_step_a_batch(lab: Path, capfd: pytest.CaptureFixture):
    whole, resumed = train_and_resume(9, "model=tutorial_gan", *SHORT, every_n_steps=4)
    assert measured(whole) == measured(resumed)
    assert whole.status["step"] == 12  # 2 epochs of 6 batches
    assert {"train/g_loss", "train/d_loss", "train/spread"} <= {name for row in measured(whole) for name in row}
    for run in (whole, resumed):
        assert files(run, "generated/**/*.png") == [
            f"samples/generated/pictures/step-00000000{step}.png"
            if step < 10
            else f"samples/generated/pictures/step-0000000{step}.png"
            for step in (6, 12)
        ]
        assert files(run, "curve.png") == ["figures/curve.png"]
    out = capfd.readouterr().out
    assert out.count("self.logger.experiment.add_histogram: the run's folder holds") == 3  # once in each process
    assert "epoch 2/2  train g_loss " in out


def test_a_run_resumes_with_a_key_that_its_own_config_reads(lab: Path, capfd: pytest.CaptureFixture):
    Path("conf/model/own.yaml").write_text("_target_: lab.Own\nname: ${place.name}\n")
    Path("lab.py").write_text(
        Path("lab.py").read_text().replace("def __init__(self):", "def __init__(self, name=None):")
    )
    train_and_resume(9, "model=own", "+place.name=here", *SHORT)
    config = yaml.safe_load((list_runs()[0].path / "config.yaml").read_text())
    assert config["place"] == {"name": "here"}


FORMER = """
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelSummary
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.data import DataLoader, TensorDataset

class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, 2)), 2)

class Said(Callback):
    def on_fit_end(self, trainer, pl_module):
        assert isinstance(trainer, pl.Trainer)
        rank_zero_info("done")
        print("a callback of", Callback.__module__)
"""


def test_a_module_that_imports_lightning_by_its_former_name_runs(lab: Path, capfd: pytest.CaptureFixture):
    Path("former.py").write_text(FORMER)
    Path("conf/project.yaml").write_text("targets: [former]\n")
    Path("conf/model/line.yaml").write_text("_target_: former.Line\n")
    Path("conf/callbacks/said.yaml").write_text("said: {_target_: former.Said}\n")
    assert cli("train", "model=line", "data=none", "callbacks=said", "trainer.max_epochs=1") == 0
    assert "a callback of lightning.pytorch.callbacks.callback" in capfd.readouterr().out
    Path("conf/callbacks/said.yaml").write_text(
        "stop: {_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: a}\n"
    )
    assert cli("check", "model=line", "data=none", "callbacks=said") == 2
    assert "write lightning.pytorch.callbacks.EarlyStopping, the current name" in capfd.readouterr().err


def test_the_frozen_config_lists_no_optimizer_that_the_module_does_not_read(lab: Path, capfd: pytest.CaptureFixture):
    assert cli("train", "model=own", *SHORT, "trainer.max_epochs=1") == 0
    out = capfd.readouterr().out
    assert "checkpoint.monitor=val/loss/dataloader_idx_0" in out.split("no best checkpoint is kept")[1].splitlines()[0]
    (run,) = list_runs()
    assert run.name.startswith("own/")
    frozen = yaml.safe_load((run.path / "config.yaml").read_text())
    assert not {"optimizer", "schedule"} & {*frozen, *last_checkpoint(run)["leyden"]["config"]}
    assert cli("rerun", "last", "model=convnet", "data=digits", "+data.limit=64", "trainer.max_epochs=1") == 0


def test_a_split_that_is_drawn_in_setup_is_the_same_in_the_test(lab: Path):
    assert cli("train", "model=memory", "data=split", "trainer.max_epochs=1") == 0
    assert list_runs()[0].status["metrics"]["test/seen"] == 0


@pytest.mark.parametrize("name", ["transformer", pytest.param("lstm", marks=pytest.mark.slow)])
def test_lightnings_demo_modules_train_with_their_own_loaders(workdir: Path, name: str):
    (workdir / "conf/model").mkdir(parents=True)
    target = f"lightning.pytorch.demos.{name}.Lightning{'LSTM' if name == 'lstm' else 'Transformer'}"
    (workdir / "conf/model/demo.yaml").write_text(f"_target_: {target}\nvocab_size: 40\n")
    (workdir / "data").mkdir()
    (workdir / "data/wikitext-2.txt").write_text("a stored copy keeps it from a download\n" * 600)
    assert cli("train", "model=demo", "data=none", "trainer.max_epochs=1", "+trainer.limit_train_batches=2") == 0
    assert list_runs()[0].status["step"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=bare"], "data=none: lab.Bare has no train_dataloader, so it needs a data module: data=NAME"),
        (["model=own", "optimizer.lr=1"], "optimizer.lr=1 would change nothing: this model does not read ${optimizer}"),
        (["model=own", "+callbacks.x._target_=lightning.pytorch.callbacks.TQDMProgressBar"], "draws its own bar"),
        (
            ["model=own", "+callbacks.x={_target_: lightning.pytorch.callbacks.StochasticWeightAveraging, swa_lrs: 1}"],
            "choose callbacks=ema",
        ),
        (["model=own", "+callbacks.x._target_=lightning.pytorch.callbacks.LearningRateFinder"], "leyden find lr"),
        (["model=own", "+callbacks.x._target_=lightning.pytorch.callbacks.BatchSizeFinder"], "leyden find batch_size"),
        (
            [
                "model=own",
                "+callbacks.x={_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: checkpoints/}",
            ],
            "leyden's own checkpoints lie there; name another folder",
        ),
        (["model=convnet"], "there is no data.image_shape"),
    ],
)
def test_what_cannot_work_is_refused_at_the_check(
    lab: Path, capfd: pytest.CaptureFixture, arguments: list[str], message: str
):
    assert message in refused(capfd, "check", "data=none", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["checkpoint.monitor=val_los/dataloader_idx_0"],
            "checkpoint.monitor=val/los/dataloader_idx_0 was not logged; did you mean val/loss/dataloader_idx_0?",
        ),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=train_los"],
            "EarlyStopping: monitor=train/los was not logged; did you mean train/loss?",
        ),
    ],
)
def test_a_monitor_that_is_not_logged_is_refused_after_the_first_epoch(
    lab: Path, capfd: pytest.CaptureFixture, arguments: list[str], message: str
):
    assert cli("train", "model=own", *SHORT, *arguments) == 2
    assert message in capfd.readouterr().err


def test_a_module_with_loaders_is_told_that_a_data_module_goes_first(lab: Path, capfd: pytest.CaptureFixture):
    cli("train", "model=own", "trainer.max_epochs=1")
    assert "the batches are those of Digits; data=none takes them from Own" in capfd.readouterr().out
