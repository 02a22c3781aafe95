"""A run that was killed or stopped ends exactly like one that was not."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from conftest import cli, forked
from leyden.callbacks.heartbeat import Heartbeat
from leyden.cli import main
from leyden.run import Run, list_runs

# 5 epochs of 9 steps, with everything random that there is: dropout, crops, flips, mixup, weight averaging
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


def final(run: Run) -> dict:
    checkpoint = torch.load(run.path / "checkpoints" / "last.ckpt", weights_only=True)
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


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("uninterrupted")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert cli("train", *OVERRIDES) == 0
        return list_runs()[0]
    finally:
        os.chdir(before)


def assert_same(run: Run, reference: Run) -> None:
    assert run.status["state"] == "finished"
    assert equal(final(run), final(reference))
    assert measured(run) == measured(reference)
    assert run.status["metrics"] == reference.status["metrics"]


# the first step, the middle, both sides of an epoch's end, the last step
@pytest.mark.parametrize(
    ("step", "within_epochs"), [(1, False), (14, True), (18, False), (19, True), (31, True), (45, False)]
)
def test_sigkill_then_resume_is_bit_identical(workdir: Path, uninterrupted: Run, step: int, within_epochs: bool):
    extra = ["+checkpoint.every_n_steps=5"] if within_epochs else []
    assert forked(train_until, step, signal.SIGKILL, *extra) == -signal.SIGKILL
    run = list_runs()[0]
    assert run.status["state"] == "killed"
    assert cli("resume", "last") == 0
    assert_same(run, uninterrupted)


@pytest.mark.parametrize(
    ("step", "signum"), [(1, signal.SIGTERM), (9, signal.SIGINT), (23, signal.SIGTERM), (45, signal.SIGINT)]
)
def test_a_signal_saves_at_the_step_and_resumes_bit_identical(workdir: Path, uninterrupted: Run, step: int, signum):
    assert forked(train_until, step, signum) == 128 + signum
    run = list_runs()[0]
    assert run.status["state"] == ("interrupted" if signum == signal.SIGINT else "preempted")
    assert run.checkpoints()[0].name == f"step-{step:09d}.ckpt"
    assert cli("resume", "last") == 0
    assert_same(run, uninterrupted)


VARIANTS = {
    "accumulation": ["accumulate=3", "+checkpoint.every_n_steps=5"],
    "bf16, clipped, fused": [
        "trainer.precision=bf16-mixed",
        "+trainer.gradient_clip_val=0.1",
        "+checkpoint.every_n_steps=4",
    ],
    "validation within the epoch": ["+trainer.val_check_interval=4"],
    "no best, averaged": ["checkpoint.keep=1"],
    "float64": ["precision=64", "+checkpoint.every_n_steps=5"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_sigkill_then_resume_in_other_setups(workdir: Path, variant: str):
    assert cli("train", *OVERRIDES, *VARIANTS[variant]) == 0
    assert forked(train_until, 24, signal.SIGKILL, *VARIANTS[variant]) == -signal.SIGKILL
    reference, run = list_runs()
    assert cli("resume", "last") == 0
    assert_same(run, reference)


def test_killed_in_the_test_stage(workdir: Path, uninterrupted: Run):
    def train() -> int:
        from leyden.models.classifier import ImageClassifier

        ImageClassifier.on_test_epoch_end = lambda self: os.kill(os.getpid(), signal.SIGKILL)
        return main(["train", *OVERRIDES])

    assert forked(train) == -signal.SIGKILL
    assert cli("resume", "last") == 0
    assert_same(list_runs()[0], uninterrupted)


def test_a_finished_run_has_nothing_left_to_do(uninterrupted: Run, capfd: pytest.CaptureFixture):
    before = (uninterrupted.path / "metrics.jsonl").read_bytes()
    assert cli("resume", str(uninterrupted.path)) == 0
    assert "nothing left to do" in capfd.readouterr().out
    assert (uninterrupted.path / "metrics.jsonl").read_bytes() == before


def test_a_second_ctrl_c_ends_at_once(workdir: Path):
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    assert forked(lambda: (at_step(14, twice), main(["train", *OVERRIDES]))[1]) == 130
    run = list_runs()[0]
    assert run.status["state"] == "killed"
    assert run.checkpoints()[0].name == "step-000000009.ckpt"  # of the epoch before
    assert cli("resume", "last") == 0


def test_a_signal_after_the_test_comes_too_late(workdir: Path, uninterrupted: Run):
    def train() -> int:
        from leyden.loggers.record import Record

        Record.close = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        return main(["train", *OVERRIDES])

    assert forked(train) == 0
    assert list_runs()[0].status["state"] == "finished"


def test_a_signal_before_training_ends_at_once(workdir: Path):
    def train() -> int:
        from leyden import train as module

        module.build = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        return main(["train", *OVERRIDES])

    assert forked(train) == 143
    assert list_runs()[0].status["state"] == "preempted"
