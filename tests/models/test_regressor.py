"""Numbers of pictures are read from a column, learned scaled, and measured and answered in their own unit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from torch import nn

from leyden.batch import ImageBatch
from leyden.cli import main
from leyden.errors import UserError
from leyden.evaluation.predict import predict
from leyden.models.classifier import Classifier
from leyden.models.regressor import Regressor
from leyden.run.find import list_runs
from leyden.schema.field import Number
from support.images import folder
from support.processes import cli
from support.trainer import Batches, trainer


def write_shades(root: Path, count: int = 60) -> Path:
    """Write grey pictures, and a table of their brightness in lux: 500 to 1500."""
    rng = np.random.default_rng(0)
    rows = ["path,lux"]
    root.mkdir()
    for k, level in enumerate(rng.integers(200, size=count)):
        pixels = level + rng.integers(40, size=(8, 8))
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{k:03}.png")
        rows.append(f"{k:03}.png,{500 + 5 * level}")
    (root / "all.csv").write_text("\n".join(rows))
    return root / "all.csv"


NUMBERS = {"num_classes": 1, "image_shape": (1, 8, 8), "answer": "number", "target": "lux", "batch_size": 8}
GREY = {"mean": 0.5, "std": 0.5}


def test_numbers_are_scaled_by_those_trained_on(tmp_path: Path):
    data = folder(write_shades(tmp_path / "shades"), **NUMBERS, **GREY, unit="lx", val_size=10)
    data.setup()
    train = data._splits["train"].labels
    field = data.schema.answer
    assert (field.kind, field.name, field.unit) == ("number", "lux", "lx")
    assert (field.mean, field.std) == (pytest.approx(train.mean()), pytest.approx(train.std()))
    assert (field.sketch.low, field.sketch.high) == (train.min(), train.max())
    label = torch.cat([batch.label for batch in data.val_dataloader()])
    assert label.dtype == torch.float32
    np.testing.assert_allclose(label * field.std + field.mean, data._splits["val"].labels, rtol=1e-5)
    brightness = np.concatenate([split.images.mean((1, 2, 3)) for split in data._splits.values()])
    numbers = np.concatenate([split.labels for split in data._splits.values()])
    assert np.corrcoef(brightness, numbers)[0, 1] > 0.99  # each number is beside its own picture


def test_errors_equal_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(70, generator=generator) + 0.3
    guess = truth + torch.randn(70, generator=generator) / 2
    model = Regressor(nn.Identity(), torch.optim.Adam)
    batches = [ImageBatch(*part) for part in zip(guess[:, None].split(32), truth.split(32), strict=True)]
    got = trainer().test(model, Batches(batches), verbose=False)[0]
    mse = mean_squared_error(truth, guess)
    expected = {"mae": mean_absolute_error(truth, guess), "rmse": mse**0.5, "r2": r2_score(truth, guess)}
    expected["skill"] = 1 - mse / truth.square().mean().item()
    assert got.keys() == {f"test/{name}" for name in expected}
    for name, value in expected.items():
        assert got[f"test/{name}"] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_it_beats_the_mean_and_answers_in_its_own_unit(workdir: Path):
    table = write_shades(workdir / "shades", 240)
    data = ["data=image_folder", f"data.train={table}", "data.answer=number", "data.target=lux", "data.unit=lx"]
    data += ["data.num_classes=1", "data.image_shape=[1,8,8]", "data.mean=0.5", "data.std=0.5", "data.batch_size=20"]
    data += ["data.val_size=40", "data.test_size=40", "data.mixup=0.2"]
    train = ["train", *data, "model=regressor", "model.net.width=4", "optimizer.lr=1e-2", "trainer.max_epochs=15"]
    assert cli(*train, "accelerator=cpu_ddp") == 0
    [run] = list_runs()
    metrics = run.status["metrics"]
    assert metrics["test/skill"] > 0.8
    assert metrics["test/mae"] < 100  # lux, of numbers that spread over 1000
    answers = list(predict(run, [table.parent]))
    truth = dict(line.split(",") for line in table.read_text().splitlines()[1:])
    errors = [answer["prediction"] - float(truth[Path(answer["name"]).name]) for answer in answers]
    assert {answer["unit"] for answer in answers} == {"lx"}
    assert np.abs(errors).mean() < 100
    assert main(["evaluate", "last", "--save-predictions"]) == 0
    [saved] = run.path.rglob("predictions.npz")
    with np.load(saved) as arrays:
        assert arrays["score.mae"].mean() == pytest.approx(metrics["test/mae"], rel=1e-4)


def test_what_is_no_number_is_refused(tmp_path: Path):
    table = write_shades(tmp_path / "shades")
    data = folder(table, **NUMBERS, **GREY, val_size=10)
    with pytest.raises(
        UserError, match=r"Classifier answers by classes, but the data's answers are number: use .*Regr"
    ):
        trainer().validate(Classifier(nn.Flatten(), 3, torch.optim.Adam), data, verbose=False)
    with pytest.raises(
        UserError, match=r"^model\.net returns \(64,\) for each sample, but a regressor needs one: set num"
    ):
        trainer().validate(Regressor(nn.Flatten(), torch.optim.Adam), data, verbose=False)
    with pytest.raises(UserError, match=r"has the columns \['path', 'lux'\]; it needs path and label$"):
        folder(table, **{**NUMBERS, "target": "label"}, **GREY).setup()
    for cell in ("bright", "nan", "1e999"):
        with table.open("a") as file:
            file.write(f"\n000.png,{cell}")
        with pytest.raises(UserError, match=rf"all\.csv has '{cell}' in the column lux, which is not a finite number$"):
            folder(table, **NUMBERS, **GREY).setup()
        table.write_text(table.read_text().rpartition("\n")[0])


def test_numbers_that_are_all_equal_are_not_scaled():
    assert Number.fit(np.full(5, 7.0), "x").std == 1
