"""Metrics that a config names are measured by every model that evaluates, on any number of ranks, and used by name."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from leyden.cli import main
from leyden.run.find import find_run, list_runs
from support.processes import cli
from support.translation import VOCAB, corpus

pytestmark = pytest.mark.usefixtures("undrawn")

REQUEST = 2  # the exit code of a wrong request
SMALL = ["data.limit=96", "data.batch_size=32", "model.net.width=3", "trainer.max_epochs=1"]
AUROC = "model.metrics={auroc: {_target_: torchmetrics.classification.MulticlassAUROC, num_classes: 10}}"
NATS = """import torch
from torchmetrics import MeanMetric


class Nats(MeanMetric):
    higher_is_better = False

    def update(self, logits, target):
        super().update(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
"""


def predictions(name: str) -> dict[str, np.ndarray]:
    """Evaluate a run on one process, and return the predictions that it saves."""
    assert cli("evaluate", name, "--save-predictions") == 0
    (path,) = find_run(name).path.glob("evaluations/*/predictions.npz")
    with np.load(path) as saved:
        return dict(saved)


@pytest.mark.parametrize("accelerator", ["cpu", "cpu_ddp"])
def test_a_classifier_is_given_probabilities_and_its_metric_chooses_the_best_checkpoint(
    workdir: Path, accelerator: str, capfd: pytest.CaptureFixture
):
    claim = "expect={metric: test/auroc, at_least: 0.999}"
    assert cli("train", *SMALL, AUROC, "+checkpoint.monitor=val/auroc", f"accelerator={accelerator}", claim) == 0
    told = capfd.readouterr().out
    assert "(val/auroc" in told
    assert "the highest" in told
    (run,) = list_runs()
    values = run.status["metrics"]
    assert 0 < values["val/auroc"] < 1
    assert [verdict["held"] for verdict in run.status["expect"]] == [False]
    saved = predictions("last")
    proba = saved["probability"].astype(float)
    area = roc_auc_score(saved["target"], proba / proba.sum(1, keepdims=True), multi_class="ovr")
    assert values["test/auroc"] == pytest.approx(area, abs=1e-5)


@pytest.mark.slow
def test_a_sweep_and_a_comparison_know_the_direction_of_a_metric(workdir: Path, capfd: pytest.CaptureFixture):
    sweep = ["optimizer.lr=1e-5,1e-2", "hydra.sweeper.objective=val/auroc", "test=false"]
    assert cli("train", "-m", *SMALL, AUROC, *sweep) == 0
    runs = list_runs()
    best = max(runs, key=lambda run: run.status["metrics"]["val/auroc"])
    (study,) = Path("runs").rglob("best.yaml")
    assert f"lr: {best.config['optimizer']['lr']}" in study.read_text()
    names = [run.path.as_posix() for run in runs]
    capfd.readouterr()
    assert cli("compare", *names, "--metric", "val/auroc") == 0
    assert "higher" in capfd.readouterr().out


def test_a_forecaster_is_given_the_values_that_were_observed(workdir: Path):
    metric = "model.metrics={r2: {_target_: torchmetrics.R2Score}}"
    assert cli("train", "model=nlinear", "data=sunspots", "trainer.max_epochs=1", metric) == 0
    saved = predictions("last")
    observed = np.isfinite(saved["target"])
    score = r2_score(saved["target"][observed], saved["prediction"][observed])
    assert list_runs()[0].status["metrics"]["test/r2"] == pytest.approx(score, abs=1e-4)


def test_a_language_model_gives_logits_to_a_metric_of_the_projects_own(workdir: Path):
    (workdir / "conf").mkdir()
    (workdir / "conf" / "project.yaml").write_text("targets: [mine]\n")
    (workdir / "mine.py").write_text(NATS)
    (workdir / "prose.txt").write_text("the cat sat on the mat.\na hen ate the corn\n" * 12)
    data = ["data=text", "data.path=prose.txt", "data.window=8", "data.batch_size=4", "data.eval_streams=4"]
    model = ["model=lstm_lm", "model.net.embedding_dim=5", "model.net.hidden_size=6", "trainer.max_epochs=1"]
    assert cli("train", *data, *model, "model.metrics={nats: {_target_: mine.Nats}}") == 0
    values = list_runs()[0].status["metrics"]
    assert values["test/nats"] == pytest.approx(values["test/loss"], abs=1e-5)
    assert values["val/nats"] == pytest.approx(values["val/loss"], abs=1e-5)


def test_a_translator_gives_texts(workdir: Path):
    pytest.importorskip("sacrebleu")
    first, second = corpus(workdir, 60)
    data = ["data=pairs", f"data.train=[{first},{second}]", "data.batch_size=16"]
    sizes = [f"data.source_vocab_size={VOCAB}", f"data.target_vocab_size={VOCAB}", "model.max_length=20"]
    net = ["model=seq2seq", "model.net.embedding_dim=12", "model.net.hidden_size=16", "trainer.max_epochs=2"]
    metrics = "model.metrics={blue: {_target_: torchmetrics.text.SacreBLEUScore}, ter: {_target_: torchmetrics.text.TranslationEditRate}}"
    assert cli("train", *data, *sizes, *net, metrics) == 0
    values = list_runs()[0].status["metrics"]
    assert 100 * values["test/blue"] == pytest.approx(values["test/bleu"])
    assert values["test/ter"] > 0


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("{auroc: {_target_: torchmetrics.classification.MulticlasAUROC}}", "did you mean MulticlassAUROC?"),
        ("{auroc: {_target_: torchmetrics.classification.MulticlassAUROC}}", "needs num_classes: write model.metrics."),
        (
            "{f: {_target_: torchmetrics.classification.MulticlassF1Score, num_classes: 10, averag: macro}}",
            "model.metrics.f.averag: torchmetrics.classification.MulticlassF1Score takes no averag; did you mean "
            "model.metrics.f.average?",
        ),
        (
            "{f: {_target_: torchmetrics.Accuracy, num_classes: 10}}",
            "model.metrics.f: torchmetrics.Accuracy needs task: write model.metrics.f.task=…",
        ),
        ("{auroc: 5}", "model.metrics={'auroc': 5}: should be an object"),
    ],
)
def test_what_is_wrong_in_the_config_is_refused_by_check(capfd, workdir: Path, metrics: str, message: str):
    assert main(["check", f"model.metrics={metrics}"]) == REQUEST
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            "{accuracy: {_target_: torchmetrics.classification.MulticlassF1Score, num_classes: 10}}",
            "model.metrics.accuracy: the model logs accuracy itself; take another name",
        ),
        (
            "{f: {_target_: torchmetrics.classification.MulticlassF1Score, num_classes: 10, average: none}}",
            "model.metrics.f: MulticlassF1Score computes values (10,); it must be one number",
        ),
        (
            "{f: {_target_: torchmetrics.classification.BinaryF1Score}}",
            "model.metrics.f: BinaryF1Score does not take (32, 10) and (32,): Predictions and targets are expected",
        ),
        (
            "{f: {_target_: torch.nn.Linear, in_features: 1, out_features: 1}}",
            "model.metrics.f builds a Linear; it must be a torchmetrics.Metric",
        ),
    ],
)
def test_what_only_the_metric_can_tell_is_refused_before_the_first_step(
    capfd, workdir: Path, metrics: str, message: str
):
    assert cli("train", *SMALL, f"model.metrics={metrics}") == REQUEST
    assert message in capfd.readouterr().err
    assert list_runs() == []
    assert not list(workdir.rglob("*.ckpt"))
