"""Test that the model can learn and that the experiment can take a training step."""

import functools
from pathlib import Path

import pytest
import torch
from my_project.data import Stripes
from my_project.model import PictureClassifier, TextureNet

from leyden.cli import main


def test_overfits_one_batch() -> None:
    """A net that cannot overfit 20 pictures has a bug."""
    torch.manual_seed(0)
    data = Stripes(num_classes=4, image_shape=(1, 16, 16), batch_size=20)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    net = TextureNet((1, 16, 16), num_classes=4, width=20)
    model = PictureClassifier(net, functools.partial(torch.optim.Adam, lr=1e-2))
    optimizer = model.configure_optimizers()
    for _ in range(150):
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
    assert (net(batch.image).argmax(1) == batch.label).all()


def test_the_experiment_takes_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`leyden train` takes a step, validates and tests with this config, and saves a checkpoint."""
    monkeypatch.setenv("LEYDEN_RUNS", str(tmp_path))
    assert main(["train", "experiment=mine", "trainer.max_steps=1", "expect=null"]) == 0
    assert len(list(tmp_path.glob("*/*/checkpoints/step-*.ckpt"))) == 1
