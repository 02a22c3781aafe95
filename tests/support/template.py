"""A project in the layout of lightning-hydra-template, small enough to train two steps in a second."""

from pathlib import Path

from support.files import write_files

CODE = '''"""A net, its module and its data."""

import torch
from lightning import LightningDataModule, LightningModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, x):
        return self.layers(x)


class Frogs(LightningModule):
    def __init__(self, net: nn.Module, optimizer, scheduler, compile: bool) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.net = net

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.log("val/loss", F.cross_entropy(logits, batch[1]))
        self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def test_step(self, batch, batch_idx):
        self.log("test/acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = self.hparams.optimizer(params=self.trainer.model.parameters())
        scheduler = self.hparams.scheduler(optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


class Pond(LightningDataModule):
    def __init__(self, data_dir: str, batch_size: int) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)

    def setup(self, stage=None):
        x = torch.rand(32, 4, generator=torch.Generator().manual_seed(0))
        self.frogs = TensorDataset(x, (x.sum(1) > 2).long())

    def train_dataloader(self):
        return DataLoader(self.frogs, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.frogs, self.hparams.batch_size)

    test_dataloader = val_dataloader
'''

CONFIGS = {
    "train.yaml": """\
# @package _global_
defaults:
  - _self_
  - data: pond
  - model: frogs
  - callbacks: default
  - logger: null
  - trainer: default
  - paths: default
  - sounds: croak
  - extras: default
  - hydra: default
  - experiment: null
  - hparams_search: null
  - optional local: default
  - debug: null
task_name: train
tags: [dev]
train: true
test: true
ckpt_path: null
seed: null
batch: 8
author: nobody
""",
    "eval.yaml": "# @package _global_\nckpt_path: ???\n",
    "data/pond.yaml": """\
_target_: pond_lab.deep.code.Pond
data_dir: ${paths.data_dir}
batch_size: ${batch}  # frogs
""",
    "model/frogs.yaml": """\
_target_: pond_lab.deep.code.Frogs
optimizer: {_target_: torch.optim.Adam, _partial_: true, lr: 0.001}
scheduler: {_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true, patience: 10}
net: {_target_: pond_lab.deep.code.Net, width: 4}
compile: false
""",
    "callbacks/default.yaml": """\
defaults: [model_checkpoint, early_stopping, rich_progress_bar, _self_]
model_checkpoint: {dirpath: "${paths.output_dir}/checkpoints", monitor: val/acc, mode: max, save_last: true}
early_stopping: {monitor: val/acc, mode: max, patience: 50}
""",
    "callbacks/model_checkpoint.yaml": """\
model_checkpoint: {_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: null, monitor: null, mode: min}
""",
    "callbacks/early_stopping.yaml": """\
early_stopping:
  _target_: lightning.pytorch.callbacks.EarlyStopping
  monitor: ???
  patience: 3
""",
    "callbacks/rich_progress_bar.yaml": "rich_progress_bar: {_target_: lightning.pytorch.callbacks.RichProgressBar}\n",
    "logger/csv.yaml": "csv: {_target_: lightning.pytorch.loggers.csv_logs.CSVLogger, save_dir: '${paths.output_dir}'}\n",
    "logger/wandb.yaml": """\
wandb: {_target_: lightning.pytorch.loggers.wandb.WandbLogger, project: frogs, offline: false, tags: []}
""",
    "logger/aim.yaml": "aim: {_target_: aim.pytorch_lightning.AimLogger, repo: '${paths.root_dir}'}\n",
    "logger/many.yaml": "defaults: [csv, wandb, aim]\n",
    "trainer/default.yaml": """\
_target_: lightning.pytorch.trainer.Trainer
default_root_dir: ${paths.output_dir}
min_epochs: 1
max_epochs: 3
accelerator: cpu
devices: 1
""",
    "trainer/gpu.yaml": "defaults: [default]\naccelerator: gpu\nprecision: 16\nmax_epochs: 9\n",
    "trainer/ddp_sim.yaml": "defaults: [default]\ndevices: 2\nstrategy: ddp_spawn\n",
    "paths/default.yaml": """\
root_dir: ${oc.env:PROJECT_ROOT}
data_dir: ${paths.root_dir}/data/
output_dir: ${hydra:runtime.output_dir}
""",
    "sounds/croak.yaml": "pitch: 3\n",
    "extras/default.yaml": "enforce_tags: true\n",
    "hydra/default.yaml": "run: {dir: '${paths.log_dir}/${task_name}'}\n",
    "debug/limit.yaml": "# @package _global_\ncallbacks: null\ntrainer: {max_epochs: 1, limit_train_batches: 0.5}\n",
    "experiment/example.yaml": """\
# @package _global_
# Do wide nets hear better?
# python src/train.py experiment=example
defaults:
  - override /data: pond
  - override /model: frogs
  - override /callbacks: default
  - override /trainer: default
task_name: hearing
tags: [frogs, wide]
seed: 12
trainer: {max_epochs: 2, default_root_dir: elsewhere}
model: {net: {width: 5}, optimizer: {lr: 2e-3}}
callbacks: {model_checkpoint: {save_top_k: 3}, early_stopping: {patience: 4}}
logger:
  wandb: {tags: "${tags}", group: ponds}
  aim: {experiment: ponds}
""",
    "experiment/long.yaml": """\
# @package _global_
defaults: [override /trainer: gpu, override /callbacks: model_checkpoint]
callbacks: {model_checkpoint: {monitor: val/loss}}
""",
    "hparams_search/widths.yaml": """\
# @package _global_
defaults: [override /hydra/sweeper: optuna]
optimized_metric: val/acc
hydra:
  mode: MULTIRUN
  sweeper:
    _target_: hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper
    storage: null
    direction: maximize
    n_trials: 3
    sampler: {_target_: optuna.samplers.TPESampler, seed: 7}
    params: {model.net.width: "choice(2, 3)", data.batch_size: "choice(4, 8)"}
""",
}


def write_project(path: Path, configs: dict[str, str]) -> Path:
    """Write the project with its package pond_lab, of which a folder has no __init__.py; return its folder."""
    files = {f"configs/{name}": text for name, text in configs.items()}
    return write_files(path, {**files, "pond_lab/deep/code.py": CODE, "pond_lab/__init__.py": ""})
