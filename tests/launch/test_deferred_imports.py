"""A start skips imports that it does not need; a module that was skipped behaves as usual once it is used."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # each starts a process that imports torch
INSTALL = "import sys; from leyden.launch import deferred_imports as deferred; deferred.install()\n"
IS_DEFERRED = "isinstance(sys.modules[name], deferred._Deferred)"


def run(code: str) -> list[str]:
    """Run code in a new process; return the lines that it prints."""
    done = subprocess.run([sys.executable, "-c", INSTALL + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


STEP = f"""
import inspect, torch, torchmetrics
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
import leyden.launch.preload  # all that a rank imports
quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
Trainer(max_steps=1, accelerator="cpu", **quiet).fit(BoringModel())
inspect.getmodule(Trainer)  # asks every module for its file
for name in ("torch._dynamo", "scipy.signal"):
    print({IS_DEFERRED})
for name in ("sympy", "torch.distributed.tensor", "polars", "wandb"):
    print(name in sys.modules)
"""


def test_a_training_step_runs_neither_dynamo_nor_scipy_signal():
    assert run(STEP)[-6:] == ["True", "True", "False", "False", "False", "False"]


COMPILED = """
import torch
calls = []

@torch.compiler.disable(recursive=False)
def eager(x):
    calls.append(torch.compiler.is_compiling())
    return x + 1

assert eager(torch.ones(2)).tolist() == [2, 2]  # before torch._dynamo has run
net = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(net.parameters(), foreach=True)
from lightning.fabric.wrappers import OptimizedModule
assert not isinstance(net, OptimizedModule)
name = "torch._dynamo"
assert isinstance(sys.modules[name], deferred._Deferred)

import torch._dynamo.config as config  # a submodule runs its parent first, and is made once
assert config is torch._dynamo.config is sys.modules["torch._dynamo.config"]
assert config.__spec__.name == "torch._dynamo.config" and config.__spec__.origin == config.__file__
assert type(sys.modules[name]) is not deferred._Deferred

graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

compiled = torch.compile(net, backend=backend)
assert isinstance(compiled, OptimizedModule)

@torch.compile(backend=backend)
def function(x):
    return eager(net(x).sin()) * 2

loss = function(torch.ones(1, 2)).sum()
assert (calls, len(graphs)) == ([False, False], 2), (calls, graphs)  # one graph before the eager function, one after
loss.backward()
before = [p.detach().clone() for p in net.parameters()]
optimizer.step()
optimizer.zero_grad()
assert all((a != b).any() for a, b in zip(before, net.parameters()))

from scipy import signal
import torchmetrics
assert signal.hamming(4).tolist() == signal.windows.hamming(4).tolist()
assert signal.convolve([1, 2], [1, 1]).tolist() == [1, 3, 2]
assert signal.hamming is signal.windows.hamming
print("as ever")
"""


def test_compiling_and_signals_work_as_ever_once_they_are_used():
    assert run(COMPILED) == ["as ever"]
