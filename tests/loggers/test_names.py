"""A logged value has one name, however a module spells it, and what modules log without a logger is stored or told."""

from pathlib import Path

import numpy as np
import pytest
import torch

from leyden.config.directions import direction_of_name
from leyden.loggers.metrics_file import read_metrics
from leyden.loggers.record import Record
from leyden.metric_names import find_metric, metric_name


@pytest.mark.parametrize(
    ("spelling", "stage", "name"),
    [
        ("val/loss", "train", "val/loss"),
        ("val_loss", "train", "val/loss"),
        ("validation_loss", "", "val/loss"),
        ("valid/top-5", "", "val/top-5"),
        ("train.acc", "", "train/acc"),
        ("test_f1", "", "test/f1"),
        ("loss", "train", "train/loss"),
        ("loss", "", "loss"),
        ("loss_step", "train", "train/loss_step"),
        ("acc", "val", "val/acc"),
        ("value", "train", "train/value"),  # not the stage val
        ("perf/memory_gb", "train", "perf/memory_gb"),
        ("val_loss/dataloader_idx_1", "", "val/loss/dataloader_idx_1"),
        ("acc/dataloader_idx_0", "test", "test/acc/dataloader_idx_0"),
    ],
)
def test_every_spelling_has_one_name(spelling: str, stage: str, name: str):
    assert metric_name(spelling, stage) == name
    assert metric_name(name, "train" if stage else "") == name


def test_a_person_may_leave_out_the_stage():
    names = {"val/acc", "test/acc", "train/loss", "perf/time"}
    asked = ("acc", "val_acc", "loss", "perf/time", "f1")
    assert [find_metric(name, names) for name in asked] == ["test/acc", "val/acc", "train/loss", "perf/time", None]


def test_a_metric_of_an_older_run_is_found_as_it_is_written():
    assert find_metric("val_loss", {"val_loss", "test_loss"}) == "val_loss"


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("val/acc/dataloader_idx_0", "max"),
        ("val/loss/dataloader_idx_1", "min"),
        ("val/balanced-accuracy", "max"),
        ("val/Top5.Acc", "max"),
        ("val/RMSE", "min"),
        ("val/account", None),
    ],
)
def test_the_name_of_a_metric_shows_its_direction(name: str, mode: str | None):
    assert direction_of_name(name) == mode


def test_two_spellings_of_one_name_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    record = Record(tmp_path)
    for step in range(3):
        record.log_metrics({"val/loss": 1.0, "perf/x": 1.0}, step)
        record.log_metrics({"val_loss": 2.0}, step)
    assert caplog.text.count("val/loss and val_loss are both read as val/loss") == 1
    assert all(row.keys() <= {"step", "time", "val/loss", "perf/x"} for row in read_metrics(record.path))


def test_the_local_client_stores_values_and_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    record = Record(tmp_path)
    client = record.experiment
    client.add_scalar("train_loss", torch.tensor(0.5), 7)
    client.add_scalars("rates", {"a": 1, "b": 2.0})
    client.log({"val_acc": np.float32(0.25), "words": ["x"]}, step=3)
    client.add_image("../deep/name of it", torch.rand(3, 8, 8), 1)
    client.add_image("flat", np.zeros((8, 8), np.uint8), dataformats="HW")
    client.add_images("many", torch.rand(4, 1, 8, 8))
    client.add_text("note", "hello")
    logged = {name: value for row in read_metrics(record.path) for name, value in row.items()}
    expected = {"train/loss": 0.5, "rates/a": 1.0, "rates/b": 2.0, "val/acc": 0.25}
    assert expected.items() <= logged.items()
    stored = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.suffix in (".gif", ".txt")}
    names = ("deep/name_of_it.gif", "flat.gif", "many.gif", "note.txt")
    assert stored == {f"samples/{name}" for name in names}
    assert "experiment.log(words: list)" in caplog.text


def test_what_the_local_client_cannot_store_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    client = Record(tmp_path).experiment
    for _ in range(2):
        client.add_histogram("weights", torch.ones(3))
        client.config.update({"lr": 1})
    out = caplog.text
    assert [out.count(f"self.logger.experiment.{name}: ") for name in ("add_histogram", "config.update")] == [1, 1]
    assert "logger=tensorboard" in out
