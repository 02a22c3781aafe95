"""Whole runs on a GPU learn, resume and share a batch as on the CPU: LEYDEN_TEST_GPU=1 pytest tests/distributed/test_gpu.py"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from leyden import checkpoints
from leyden.config.compose import compose
from leyden.run.find import list_runs
from leyden.training.assemble import build_model
from support.training import equal

pytestmark = pytest.mark.skipif(
    "LEYDEN_TEST_GPU" not in os.environ or not torch.cuda.is_available(), reason="wants LEYDEN_TEST_GPU=1 and a GPU"
)


def leyden(*arguments: str, **kwargs) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "leyden.cli", *arguments], **kwargs)


SAME_BITS = ["trainer.benchmark=false", "trainer.deterministic=true"]
LONG = ["accelerator=gpu", *SAME_BITS, "trainer.max_epochs=12", "data.crop=1", "data.flip=true"]


def test_a_killed_run_ends_like_one_that_was_not(workdir: Path):
    assert leyden("train", *LONG).wait() == 0
    began = leyden("train", *LONG, "+checkpoint.every_n_steps=5")
    while not (len(list_runs()) == 2 and list(list_runs()[1].path.glob("checkpoints/step-00000006*"))):
        time.sleep(0.01)
        assert began.poll() is None
    began.send_signal(signal.SIGKILL)
    began.wait()
    assert leyden("resume", "last").wait() == 0
    whole, resumed = list_runs()
    assert json.loads((resumed.path / "manifest.json").read_text())["device"] != "cpu"
    a, b = (checkpoints.load(run.path / "checkpoints/last.ckpt") for run in (whole, resumed))
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(a[key], b[key]), key


@pytest.mark.parametrize("experiment", ["cnn_digits", "pydocs_lstm", "char_mingru"])
def test_a_training_step_does_not_wait_for_the_device(workdir: Path, experiment: str):
    composed = compose([f"experiment={experiment}", "accelerator=gpu"])
    model, data = build_model(composed.config)
    try:
        data.prepare_data()
    except Exception as error:
        pytest.skip(str(error))
    data.setup()
    loader = data.train_dataloader()
    batches = [move_data_to_device(loader.batch(0, i), torch.device("cuda")) for i in range(3)]
    model.cuda()
    for batch in batches:
        with torch.autocast("cuda", torch.bfloat16):
            model.training_step(batch, 0).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            with torch.autocast("cuda", torch.bfloat16):
                model.training_step(batch, 0).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_language_model_trains_and_writes(workdir: Path):
    assert leyden("train", "experiment=pydocs_lstm", "accelerator=gpu", "trainer.max_epochs=1").wait() == 0
    out = subprocess.run(
        [sys.executable, "-m", "leyden.cli", "sample", "last", "--prompt", "The ", "-n", "40"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.startswith("The ")
    assert len(out) > 40
