"""A run that was killed or stopped ends exactly like one that was not."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from leyden.cli import main
from leyden.commands import resume
from leyden.config.compose import compose
from leyden.run.directory import Run
from leyden.run.find import list_runs
from support.processes import cli, forked
from support.training import (
    OVERRIDES,
    assert_same,
    at_step,
    train_until,
)

pytestmark = pytest.mark.usefixtures("undrawn")


# the first step, the middle, both sides of an epoch's end, the last step
@pytest.mark.parametrize(
    ("step", "within_epochs"),
    [
        pytest.param(1, False, marks=pytest.mark.slow),
        (14, True),
        (18, False),
        pytest.param(19, True, marks=pytest.mark.slow),
        pytest.param(31, True, marks=pytest.mark.slow),
        pytest.param(45, False, marks=pytest.mark.slow),
    ],
)
def test_sigkill_then_resume_is_bit_identical(workdir: Path, uninterrupted: Run, step: int, within_epochs: bool):
    extra = ["+checkpoint.every_n_steps=5"] if within_epochs else []
    assert forked(train_until, step, signal.SIGKILL, *extra) == -signal.SIGKILL
    run = list_runs()[0]
    assert run.status["state"] == "killed"
    assert cli("resume", "last") == 0
    assert_same(run, uninterrupted)


@pytest.mark.parametrize(
    ("step", "signum"),
    [
        pytest.param(1, signal.SIGTERM, marks=pytest.mark.slow),
        (9, signal.SIGINT),
        (23, signal.SIGTERM),
        pytest.param(45, signal.SIGINT, marks=pytest.mark.slow),
    ],
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
    "rare classes": ["data.sampling=sqrt", "model.class_weights=balanced", "+checkpoint.every_n_steps=5"],
    "float64": ["precision=64", "+checkpoint.every_n_steps=5"],
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_sigkill_then_resume_in_other_setups(workdir: Path, variant: str):
    assert cli("train", *OVERRIDES, *VARIANTS[variant]) == 0
    assert forked(train_until, 24, signal.SIGKILL, *VARIANTS[variant]) == -signal.SIGKILL
    reference, run = list_runs()
    assert cli("resume", "last") == 0
    assert_same(run, reference)


def test_killed_in_the_test_stage(workdir: Path, uninterrupted: Run):
    def train() -> int:
        from leyden.models.image_classifier import ImageClassifier

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
        from leyden.training import fit as module

        module.build = lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        return main(["train", *OVERRIDES])

    assert forked(train) == 143
    assert list_runs()[0].status["state"] == "preempted"


def test_another_accelerator_keeps_the_precision_that_was_set_by_hand(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    by_hand = ["accelerator=cpu_ddp", "precision=64", "trainer.devices=4", "+trainer.deterministic=true"]
    run = Run.create(compose([*OVERRIDES, *by_hand]))
    configs = []
    monkeypatch.setattr(resume, "start", lambda run, config: configs.append(config) or SimpleNamespace(results={}))
    monkeypatch.setattr(resume, "print_results", lambda run, results: None)
    assert main(["resume", str(run.path), "accelerator=cpu"]) == 0
    assert "accelerator=cpu replaces trainer.devices=4, with which the run was started" in capsys.readouterr().out
    assert main(["resume", str(run.path), "accelerator=cpu", "precision=32", "trainer.devices=2"]) == 0
    assert "replaces" not in capsys.readouterr().out
    trainers = [config["trainer"] for config in configs]
    assert [trainer["precision"] for trainer in trainers] == [64, 32]
    assert [trainer["devices"] for trainer in trainers] == [1, 2]
    assert [trainer["deterministic"] for trainer in trainers] == [True, True]
