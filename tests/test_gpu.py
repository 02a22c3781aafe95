"""What only a GPU can show. Runs where one is and LEYDEN_TEST_GPU=1 asks for it: LEYDEN_TEST_GPU=1 pytest tests/test_gpu.py"""

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

from leyden import checkpoints, config
from leyden.nets import recurrence
from leyden.nets.lstm import GRU, LSTM, LSTMCell
from leyden.nets.rnn import RNN
from leyden.run import list_runs
from leyden.train import build_model
from test_resume import equal

pytestmark = pytest.mark.skipif(
    "LEYDEN_TEST_GPU" not in os.environ or not torch.cuda.is_available(), reason="wants LEYDEN_TEST_GPU=1 and a GPU"
)


def leyden(*arguments: str, **kwargs) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "leyden.cli", *arguments], **kwargs)


def gradients(net: torch.nn.Module, out: torch.Tensor) -> list[torch.Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    (out * weight).sum().backward()
    return [p.grad.cpu() for p in net.parameters()]


@pytest.mark.parametrize("make", [lambda: LSTM(5, 7), lambda: GRU(5, 7), lambda: RNN(9, 7, 9)])
def test_recurrent_layers_are_the_same_as_on_the_cpu(make):
    torch.manual_seed(0)
    here = make().double()
    there = make().double().cuda()
    there.load_state_dict(here.state_dict())
    x = torch.randint(9, (3, 70)) if isinstance(here, RNN) else torch.randn(3, 70, 5, dtype=torch.float64)
    out = {}
    for net, given in ((here, x), (there, x.cuda())):
        first, state = net(given[:, :33])
        second, _ = net(given[:, 33:], state)
        both = torch.cat([first, second], 1)
        out[net] = (both.detach().cpu(), *gradients(net, both))
    for a, b in zip(out[here], out[there], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_lstm_is_the_written_out_cell():
    torch.manual_seed(0)
    cell, layer = (kind(6, 8).double().cuda() for kind in (LSTMCell, LSTM))
    layer.load_state_dict(cell.state_dict())
    x = torch.randn(4, 50, 6, dtype=torch.float64, device="cuda")
    state, out = None, []
    for row in x.unbind(1):
        state = cell(row, state)
        out.append(state[0])
    loop, ours = torch.stack(out, 1), layer(x)[0]
    torch.testing.assert_close(loop, ours, rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(cell, loop), gradients(layer, ours), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 5, 64, 333])
def test_scans_are_the_recurrences(steps: int):
    torch.manual_seed(0)
    u, h0 = torch.randn(3, steps, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    weight = 0.4 * torch.randn(6, 6, dtype=torch.float64)
    decay = torch.rand(3, steps, 6, dtype=torch.float64)
    for function, given in ((recurrence.linear, (u, weight, h0)), (recurrence.diagonal, (decay, u, h0))):
        here = [x.clone().requires_grad_() for x in given]
        there = [x.cuda().requires_grad_() for x in given]
        a, b = function(*here), function(*there)
        torch.testing.assert_close(a, b.cpu(), rtol=1e-12, atol=1e-12)
        a.square().sum().backward()
        b.square().sum().backward()
        for p, q in zip(here, there, strict=True):
            torch.testing.assert_close(p.grad, q.grad.cpu(), rtol=1e-11, atol=1e-11)


LONG = ["accelerator=gpu", "trainer.max_epochs=12", "data.crop=1", "data.flip=true"]


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
    composed = config.compose([f"experiment={experiment}", "accelerator=gpu"])
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
