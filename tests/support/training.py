"""Interrupts runs at a step, and compares two runs that should be the same."""

import json
import os
import signal

import torch

from leyden.callbacks.checkpoint import Agreement
from leyden.callbacks.heartbeat import Heartbeat
from leyden.cli import main
from leyden.run.directory import Run
from leyden.run.find import list_runs
from support.processes import cli, forked

# 5 epochs of 9 steps, with all kinds of randomness: dropout, crops, flips, mixup; and weight averaging
OVERRIDES = [
    "data.limit=300",  # 9 batches an epoch
    "data.crop=1",
    "data.flip=true",
    "data.mixup=0.2",
    "data.batch_size=32",
    "model.net.width=3",
    "model.net.input_size=16",
    "+model.net.dropout=0.3",
    "callbacks=ema",
    "callbacks.ema.decay=0.9",
    "optimizer.lr=1e-2",
    "trainer.max_epochs=5",
    "trainer.log_every_n_steps=4",
]
LAST_STEP = 45
TWO = ["accelerator=cpu_ddp", "trainer.max_epochs=2", "data.limit=100", "data.batch_size=20", "test=false"]
SMALL = ["data.limit=128", "data.batch_size=32", "model.net.width=3", "model.net.input_size=16", "trainer.max_epochs=3"]


def at_step(step: int, act: object) -> None:
    """In this process, call `act` at the end of training step `step`."""
    beat = Heartbeat.on_train_batch_end

    def on_train_batch_end(self, trainer, *rest):
        beat(self, trainer, *rest)
        if trainer.global_step == step:
            act()

    Heartbeat.on_train_batch_end = on_train_batch_end


def train_until(step: int, signum: int, *overrides: str) -> int:
    at_step(step, lambda: os.kill(os.getpid(), signum))
    return main(["train", *OVERRIDES, *overrides])


def train_and_resume(
    step: int, *arguments: str, every_n_steps: int = 2, exit_code: int = -signal.SIGKILL
) -> tuple[Run, Run]:
    """Train twice: once without a stop, then killed at a step and resumed; both runs must end with the same state."""
    assert cli("train", *arguments) == 0

    def train() -> int:
        at_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
        return main(["train", *arguments, f"+checkpoint.every_n_steps={every_n_steps}"])

    assert forked(train) == exit_code
    assert cli("resume", "last") == 0
    whole, resumed = list_runs()
    checkpoints = [last_checkpoint(run) for run in (whole, resumed)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(checkpoints[0][key], checkpoints[1][key]), key
    return whole, resumed


def last_checkpoint(run: Run) -> dict:
    return torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return last_checkpoint(run)["state_dict"]


def final(run: Run) -> dict:
    checkpoint = last_checkpoint(run)
    return {key: checkpoint[key] for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers")}


def measured(run: Run) -> list[dict]:
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")} for row in rows]


def equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def assert_same(run: Run, reference: Run) -> None:
    assert run.status["state"] == "finished"
    assert equal(final(run), final(reference))
    assert measured(run) == measured(reference)
    assert run.status["metrics"] == reference.status["metrics"]


def on_rank(rank: int, step: int, act: object) -> None:
    """In the ranks forked from this process, call `act` at the end of a rank's training step."""
    beat = Heartbeat.on_train_batch_end

    def on_train_batch_end(self, trainer, *rest):
        beat(self, trainer, *rest)
        if trainer.global_rank == rank and trainer.global_step == step:
            act()

    Heartbeat.on_train_batch_end = on_train_batch_end


def trouble(act: object, *overrides: str, rank: int = 1, step: int = 7) -> int:
    Agreement.INTERVAL = 0.0  # at every step, because there are few
    on_rank(rank, step, act)
    return main(["train", *TWO, *overrides])
