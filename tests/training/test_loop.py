"""The tight loop trains bit for bit what Lightning's loop trains, and leaves what it does not cover to Lightning's."""

from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from leyden.training import loop
from leyden.training.seeding import seed_everything

X = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))


class Module(LightningModule):
    """Knows nothing of leyden: dropout, a schedule, Lightning's own log."""

    def __init__(self, schedule: str = "step") -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
        self.schedule = schedule

    def training_step(self, batch, batch_idx):
        loss = (self.net(batch[0]) ** 2).mean()
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss, "extra": batch_idx}

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", (self.net(batch[0]) ** 2).mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        if self.schedule == "plateau":
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
        return [optimizer], [{"scheduler": scheduler, "interval": self.schedule}]


class Seen(Callback):
    """Notes what a callback is given, and what the trainer knows then."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.calls.append(("start", batch_idx, trainer.global_step))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.calls.append(("end", batch_idx, trainer.global_step, float(outputs["loss"]), outputs["extra"]))


def fit(folder: Path, tight: bool, monkeypatch, *, module=Module, schedule="step", callbacks=(), **options) -> tuple:
    torch.manual_seed(0)
    model, seen = module(schedule), Seen()
    options = {"max_epochs": 4, "num_sanity_val_steps": 0, "log_every_n_steps": 3, **options}
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[seen, *(make() for make in callbacks)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    loop.install(trainer, seed=0)
    with monkeypatch.context() as patch:
        if not tight:
            patch.setattr(loop, "can_run_tight", lambda trainer: False)
        trainer.fit(model, DataLoader(TensorDataset(X), 8, shuffle=True), DataLoader(TensorDataset(X), 8))
    state = {
        "weights": [p.detach().clone() for p in model.parameters()],
        "optimizer": trainer.optimizers[0].state_dict(),
        "loops": trainer.fit_loop.state_dict(),
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
        "csv": (folder / "metrics.csv").read_text(),
        "calls": seen.calls,
        "step": trainer.global_step,
    }
    return state, trainer.fit_loop.epoch_loop.tight


CASES = {
    "plain": {},
    "clip by norm": {"gradient_clip_val": 0.1},
    "clip by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "validation within the epoch": {"val_check_interval": 5},
    "validation over epochs": {"val_check_interval": 7, "check_val_every_n_epoch": None},
    "validation now and then": {"check_val_every_n_epoch": 2},
    "max_steps": {"max_steps": 30},
    "limited batches": {"limit_train_batches": 7},
    "bfloat16": {"precision": "bf16-mixed"},
    "schedule per epoch": {"schedule": "epoch"},
    "plateau": {"schedule": "plateau"},
    "early stopping": {"callbacks": [lambda: EarlyStopping("val/loss", patience=0, min_delta=1.0)]},
    "weight averaging": {"callbacks": [lambda: EMAWeightAveraging(decay=0.9)]},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_equal_to_lightnings_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours, tight = fit(tmp_path / "a", True, monkeypatch, **CASES[case])
    stock, _ = fit(tmp_path / "b", False, monkeypatch, **CASES[case])
    assert tight
    assert all(torch.equal(a, b) for a, b in zip(ours.pop("weights"), stock.pop("weights"), strict=True))
    assert str(ours) == str(stock)


class OwnStep(Module):
    """Overrides a hook that the tight loop does not call."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2},
        {"module": OwnStep},
        {"callbacks": [lambda: GradientAccumulationScheduler({0: 2})]},
        {"profiler": "simple"},
    ],
    ids=["accumulation", "own optimizer_step", "scheduled accumulation", "profiler"],
)
@pytest.mark.filterwarnings("ignore")
def test_what_it_does_not_cover_goes_lightnings_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict):
    state, tight = fit(tmp_path, True, monkeypatch, max_epochs=1, **options)
    assert not tight
    assert state["step"] == (6 if "accumul" in str(options) or "callbacks" in options else 12)


def test_seeds_differ_between_seeds_steps_and_ranks():
    def draw(*numbers: int) -> float:
        seed_everything(*numbers)
        return torch.rand(()).item()

    points = [(s, t, r) for s in range(5) for t in (*range(-3, 40), 10**6) for r in range(3)]
    assert len({draw(*point) for point in points}) == len(points)
    assert draw(1, 2, 0) == draw(1, 2, 0)
