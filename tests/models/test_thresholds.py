"""Validation chooses the threshold between two classes, and the scores of each class are measured at it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support, roc_auc_score
from torch import nn

from leyden.batch import ImageBatch
from leyden.cli import main
from leyden.errors import UserError
from leyden.evaluation.predict import predict
from leyden.metrics.decisions import ClassScores, ScoredSamples, rank
from leyden.models.classifier import Classifier
from leyden.run.find import list_runs
from support.processes import cli
from support.trainer import Batches, trainer


@pytest.mark.parametrize("digits", [1, 6])
def test_ranking_equals_scikit_learns_with_and_without_ties(digits):
    rng = np.random.default_rng(digits)
    truths = rng.random(200) < 0.3
    scores = np.round(rng.random(200) * 0.7 + 0.2 * truths, digits).astype(np.float32)
    got = rank(torch.from_numpy(scores), torch.from_numpy(truths))
    assert got.auc == pytest.approx(roc_auc_score(truths, scores))
    assert got.average_precision == pytest.approx(average_precision_score(truths, scores))
    best = max(f1_score(truths, scores > level) for level in [0, *scores])
    assert f1_score(truths, scores > got.threshold) == best
    assert 0 < got.threshold < 1


def test_without_positives_or_negatives_there_is_no_ranking():
    scores = torch.tensor([0.2, 0.7])
    none, both = rank(scores, torch.tensor([False, False])), rank(scores, torch.tensor([True, True]))
    assert np.isnan([none.auc, none.average_precision, both.auc]).all()
    assert (none.threshold, both.average_precision) == (0.5, 1.0)
    assert both.threshold < 0.2


def test_a_single_sample_keeps_its_shape():
    samples = ScoredSamples()
    samples.update(torch.tensor([[0.7]]), torch.tensor([[1]]))
    scores, truths = samples.collect()
    assert (scores.tolist(), truths.tolist()) == ([[pytest.approx(0.7)]], [[True]])


class Texts(DummyLogger):
    """A logger that keeps texts."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}

    def log_text(self, name: str, text: str, step: int) -> None:
        self.texts[name] = text


@pytest.mark.parametrize(("num_classes", "threshold"), [(2, 0.5), (2, 0.8), (4, 0.5)])
def test_the_table_and_the_scores_are_those_of_the_decisions(num_classes: int, threshold: float):
    generator = torch.Generator().manual_seed(num_classes)
    logits = torch.randn(90, num_classes, generator=generator)
    label = torch.randint(num_classes, (90,), generator=generator)
    names, logger = ["ant", "bee", "cat", "dormouse"][:num_classes], Texts()
    model = Classifier(nn.Identity(), num_classes, torch.optim.Adam, classes=names, threshold=threshold)
    batches = [ImageBatch(*part) for part in zip(logits.split(40), label.split(40), strict=True)]
    got = trainer(logger=logger).test(model, Batches(batches), verbose=False)[0]
    proba = logits.softmax(1)
    decided = proba.argmax(1) if num_classes > 2 else (proba[:, 1] > threshold).long()
    expected = precision_recall_fscore_support(label, decided, zero_division=0)
    head, *rows, mean = logger.texts["test/classes"].splitlines()
    assert head.split() == ["class", "precision", "recall", "f1", "support"]
    for name, row, *values in zip(names, rows, *expected, strict=True):
        assert row.split() == [name, *(f"{value:.4f}" for value in values[:3]), str(values[3])]
    assert mean.split() == ["mean", *(f"{column.mean():.4f}" for column in expected[:3]), "90"]
    assert got["test/f1"] == pytest.approx(expected[2].mean())
    assert got["test/accuracy"] == pytest.approx((decided == label).double().mean().item())
    assert ("test/auc" in got) == (num_classes == 2)


def test_a_class_without_samples_or_decisions_has_the_score_0():
    scores = ClassScores.of_confusion(torch.tensor([[3, 0, 1], [0, 0, 0], [2, 0, 0]]))
    assert scores.f1.tolist() == [pytest.approx(2 / 3), 0, 0]
    assert scores.support.tolist() == [4, 0, 2]


def test_more_than_two_classes_have_no_threshold():
    with pytest.raises(
        UserError, match=r"^model\.threshold=f1 decides between two classes, but model\.num_classes=3; "
    ):
        Classifier(nn.Identity(), 3, torch.optim.Adam, threshold="f1")


def write_shades(folder: Path) -> Path:
    """Write 80 grey pictures: the lighter, the more often they are of the class `light`, which is rare."""
    rng = np.random.default_rng(0)
    for k, level in enumerate(rng.integers(256, size=80)):
        path = folder / ("light" if rng.random() * 400 < level else "dark") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), int(level)).save(path)
    return folder


@pytest.mark.slow
def test_a_threshold_chosen_on_two_ranks_travels_with_the_averaged_weights(workdir: Path, capfd):
    pictures = write_shades(workdir / "pictures")
    data = ["data=image_folder", f"data.train={pictures}", "data.num_classes=2", "data.image_shape=[1,8,8]"]
    data += ["data.mean=0.5", "data.std=0.5", "data.batch_size=10", "data.val_size=20", "data.test_size=20"]
    model = ["model=convnet", "model.net.width=2", "model.net.input_size=16", "model.threshold=f1", "callbacks=ema"]
    train = ["train", *data, *model, "optimizer.lr=1e-2", "trainer.max_epochs=3"]
    assert cli(*train, "accelerator=cpu_ddp", "callbacks.ema.decay=0.5") == 0
    [run] = list_runs()
    logged = run.status["metrics"]
    threshold = logged["test/threshold"]
    assert threshold == logged["val/threshold"] != 0.5
    assert 0 < logged["test/auc"] <= 1
    assert main(["evaluate", "last"]) == 0
    assert f"{logged['test/average_precision']:.4f}"[:5] in capfd.readouterr().out
    answers = list(predict(run, [pictures]))
    assert len(answers) == 80
    for answer in answers:
        assert (answer["label"] == "light") == (answer["probabilities"]["light"] > threshold)
        assert answer["probability"] == answer["probabilities"][answer["label"]]
    assert len({answer["label"] for answer in answers}) == 2
