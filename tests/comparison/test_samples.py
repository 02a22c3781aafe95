"""Two single models are compared by their answers to the same samples of the test split."""

from pathlib import Path

import numpy as np
import pytest
import torch
from leyden.callbacks.predictions import pair_with_targets

from leyden.batch import ImageBatch, TextBatch
from leyden.errors import UserError
from leyden.run.directory import Run
from leyden.run.find import find_run
from support.comparison import compare, rows
from support.processes import cli

REQUEST = 2  # the exit code of a wrong request


def predictions(run: str, **arrays) -> None:
    folder = Path("runs", run, "evaluations", arrays.pop("when", "now"))
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"split": "test", "sha256": "s", "checkpoint": "step-9.ckpt", "block": 1}
    np.savez(folder / "predictions.npz", **(facts | arrays))


def test_two_models_are_compared_on_the_same_samples(seeds: Path, capsys: pytest.CaptureFixture):
    target = np.arange(200) % 4
    worse, better = np.where(np.arange(200) < 30, -1, target), np.where(np.arange(200) < 8, -1, target)
    predictions("a/0", target=target, prediction=worse)
    predictions("b/0", target=target, prediction=better)
    assert compare("a/0", "b/0", "--samples", "--save", "found.csv") == 0
    assert float(rows()[1]["p"]) == pytest.approx(2 * 0.5**22)
    assert "b/0 is better than a/0 by 11.0 points of test/accuracy (95 %, +7." in (out := capsys.readouterr().out)
    assert "(McNemar, exact, n = 200 samples)" in out
    predictions("b/0", target=target[:9], prediction=better[:9], split="val", when="later")
    best = Path("runs/b/0/checkpoints/best.ckpt")
    best.parent.mkdir()
    best.with_name("step-7.ckpt").touch()
    best.symlink_to("step-7.ckpt")
    assert compare("a/0", "b/0", "--samples", "--save", "f.svg") == 0
    assert "b/0: these predictions are of step-9.ckpt, not of the best checkpoint" in capsys.readouterr().out
    assert "<!-- test/accuracy minus a/0 (points) -->" in Path("f.svg").read_text()
    assert compare("b/0", "a/0", "--samples") == REQUEST
    said = "a/0 has no predictions of val: leyden evaluate a/0 --split val --save-predictions makes them"
    assert said in capsys.readouterr().err
    predictions("b/0", target=target, prediction=better, sha256="other")
    assert compare("a/0", "b/0", "--samples") == REQUEST
    assert "predict different samples with the same targets" in capsys.readouterr().err
    predictions("b/0", target=target[::-1], prediction=better)
    assert compare("a/0", "b/0", "--samples", "--force") == REQUEST
    assert "predict different samples: evaluate" in capsys.readouterr().err


def test_two_forecasters_are_compared_in_blocks_of_windows(seeds: Path, capsys: pytest.CaptureFixture):
    rng = np.random.default_rng(0)
    target = rng.normal(size=(100, 3, 1)).astype(np.float32)
    target[4] = np.nan  # nothing was observed
    for run, noise in (("a/0", 1.0), ("b/0", 0.1)):
        prediction = target + noise * rng.normal(size=target.shape).astype(np.float32)
        error = np.square(prediction - target).mean((1, 2))
        predictions(run, target=target, prediction=prediction, error=error, block=6)
    assert compare("a/0", "b/0", "--samples") == 0
    out = capsys.readouterr().out
    assert "b/0 is better than a/0 by" in out
    assert "of test/mse" in out
    assert "(paired t, n = 16 blocks of samples)" in out
    for run, noise in (("a/0", 1.0), ("b/0", 0.1)):
        predictions(run, target=target[:3], prediction=target[:3], error=np.full(3, noise), block=6)
    assert compare("a/0", "b/0", "--samples") == 0
    out = capsys.readouterr().out
    assert "but one value says nothing about spread: nothing can be tested (n = 1 block of samples)" in out
    predictions("b/0", target=np.full_like(target, np.nan), prediction=target, error=np.full(100, np.nan), block=6)
    assert compare("a/0", "b/0", "--samples") == REQUEST
    assert "b/0 has predictions, but none of its targets was observed" in capsys.readouterr().err


def test_predictions_are_judged_by_what_they_are():
    image, label = torch.zeros(2, 1, 8, 8), torch.tensor([2, 0])
    proba = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.9, 0.0]])
    assert pair_with_targets(ImageBatch(image, label), proba)["prediction"].tolist() == [2, 1]
    values = pair_with_targets((image, torch.tensor([[1.0, 2.0], [3.0, 4.0]])), torch.tensor([[1.0, 4.0], [3.0, 4.0]]))
    assert values["error"].tolist() == [2, 0]
    with pytest.raises(UserError, match="predict_step does not predict each sample of a TextBatch"):
        pair_with_targets(TextBatch(label[None], label[None], False, 1.0, 2.0), torch.zeros(1, 2, 9))
    with pytest.raises(UserError, match="neither probabilities"):
        pair_with_targets((image, torch.zeros(2)), torch.zeros(2, 3))


@pytest.mark.slow
def test_evaluate_saves_what_a_classifier_and_a_forecaster_say_of_each_sample(workdir: Path):
    small = ["trainer.max_epochs=1", "data.batch_size=50", "data.limit=100"]
    for seed in range(2):
        assert cli("train", *small, "name=net", f"seed={seed}", f"optimizer.lr={[1e-6, 1e-2][seed]}") == 0
        assert cli("evaluate", "last", "--save-predictions") == 0
    worse, better = sorted(Path("runs/net").iterdir())
    for path in (worse, better):
        (saved,) = path.glob("evaluations/*/predictions.npz")
        arrays, run = np.load(saved), Run(path)
        right = arrays["prediction"] == arrays["target"]
        assert right.mean() == pytest.approx(run.status["metrics"]["test/accuracy"], abs=1e-6)
        assert arrays["probability"].shape == (359, 10)
        assert arrays["probability"].argmax(1).tolist() == arrays["prediction"].tolist()
        assert str(arrays["sha256"]) == run.manifest["data"]["test"]["sha256"]
    assert compare(str(worse), str(better), "--samples") == 0
    assert cli("train", "model=nlinear", "data=sunspots", "trainer.max_epochs=1", "name=series") == 0
    assert cli("evaluate", "last", "--save-predictions") == 0
    run = find_run("last")
    (saved,) = run.path.glob("evaluations/*/predictions.npz")
    arrays = np.load(saved)
    assert np.mean(arrays["error"]) == pytest.approx(run.status["metrics"]["test/mse"], rel=1e-4)
    assert int(arrays["block"]) == 2 * arrays["prediction"].shape[1]
