"""Two single models are compared by their answers to the same samples of the test split."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from leyden import statistics
from leyden.batch import ImageBatch
from leyden.errors import UserError
from leyden.evaluation.predictions import scores_by_target, target_of
from leyden.run.directory import Run
from leyden.run.find import find_run
from support.comparison import compare, rows
from support.processes import cli
from support.translation import VOCAB, corpus

pytestmark = pytest.mark.usefixtures("undrawn")

REQUEST = 2  # the exit code of a wrong request


def predictions(run: str, scores: dict[str, np.ndarray], **arrays) -> None:
    folder = Path("runs", run, "evaluations", arrays.pop("when", "now"))
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"format": 1, "split": "test", "sha256": "s", "checkpoint": "step-9.ckpt", "block": 1}
    facts |= {f"score.{name}": values for name, values in scores.items()}
    np.savez(folder / "predictions.npz", **(facts | arrays))


def test_two_models_are_compared_on_the_same_samples(seeds: Path, capsys: pytest.CaptureFixture):
    target = np.arange(200) % 4
    worse, better = ({"accuracy": (np.arange(200) >= wrong).astype(float)} for wrong in (30, 8))
    predictions("a/0", worse, target=target)
    predictions("b/0", better, target=target)
    assert compare("a/0", "b/0", "--samples", "--save", "found.csv") == 0
    assert float(rows()[1]["p"]) == pytest.approx(2 * 0.5**22)
    assert "b/0 is better than a/0 by 11.0 points of test/accuracy (95 %, +7." in (out := capsys.readouterr().out)
    assert "(McNemar, exact, n = 200 samples)" in out
    predictions("b/0", {"accuracy": np.ones(9)}, target=target[:9], split="val", when="later")
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
    predictions("b/0", better, target=target, sha256="other")
    assert compare("a/0", "b/0", "--samples") == REQUEST
    assert "predict different samples with the same targets" in capsys.readouterr().err
    predictions("b/0", better, target=target[::-1])
    assert compare("a/0", "b/0", "--samples", "--force") == REQUEST
    assert "predict different samples: evaluate" in capsys.readouterr().err


def test_two_forecasters_are_compared_in_blocks_of_windows(seeds: Path, capsys: pytest.CaptureFixture):
    rng = np.random.default_rng(0)
    target = rng.normal(size=(100, 3, 1)).astype(np.float32)
    target[4] = np.nan  # nothing was observed
    for run, noise in (("a/0", 1.0), ("b/0", 0.1)):
        prediction = target + noise * rng.normal(size=target.shape).astype(np.float32)
        error = np.square(prediction - target).mean((1, 2))
        predictions(run, {"mse": error}, target=target, block=6)
    assert compare("a/0", "b/0", "--samples") == 0
    out = capsys.readouterr().out
    assert "b/0 is better than a/0 by" in out
    assert "of test/mse" in out
    assert "(paired t, n = 16 blocks of samples)" in out
    for run, noise in (("a/0", 1.0), ("b/0", 0.1)):
        predictions(run, {"mse": np.full(3, noise)}, target=target[:3], block=6)
    assert compare("a/0", "b/0", "--samples") == 0
    out = capsys.readouterr().out
    assert "but one value says nothing about spread: nothing can be tested (n = 1 block of samples)" in out
    predictions("b/0", {"mse": np.full(100, np.nan)}, target=np.full_like(target, np.nan), block=6)
    assert compare("a/0", "b/0", "--samples") == REQUEST
    assert "b/0 has predictions, but none of its targets was observed" in capsys.readouterr().err


def test_metrics_of_sums_are_compared_by_exchanging_samples(seeds: Path, capsys: pytest.CaptureFixture):
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 50, 80).astype(float)
    nats = tokens * rng.normal(3, 0.3, 80)
    for run, lower in (("a/0", 0.0), ("b/0", 0.1)):
        loss = np.stack([nats - lower * tokens + 0.1 * rng.normal(size=80), tokens], 1)
        matches = np.outer(tokens, [0.6 + lower, 0.4 + lower, 0.3 + lower, 0.2 + lower])
        bleu = np.column_stack([matches, np.repeat(tokens[:, None], 4, 1), tokens, tokens])
        predictions(run, {"loss": loss, "bleu": bleu}, target=np.arange(80))
    assert compare("a/0", "b/0", "--samples", "--save", "found.csv") == 0
    out = capsys.readouterr().out
    assert "b/0 is better than a/0 by 0.1" in out
    assert "test/loss: differences, approximate randomization" in out
    assert {row["metric"] for row in rows()} == {"test/loss", "test/bleu"}
    predictions("b/0", {"loss": loss[:, :1].repeat(3, 1)}, target=np.arange(80))
    assert compare("a/0", "b/0", "--samples") == REQUEST
    assert "the score loss has the shape (80, 3)" in capsys.readouterr().err


def test_bleu_of_sums_is_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu")
    hypotheses = ["the cat sat on the mat today", "a dog runs in the big green park", "we all go home"]
    references = ["the cat sat on a mat today", "a dog runs in a big green park", "we all go home now"]
    scores = sacrebleu.BLEU(smooth_method="none")
    parts = [scores.sentence_score(h, [r]) for h, r in zip(hypotheses, references, strict=True)]
    sums = np.sum([[*part.counts, *part.totals, part.sys_len, part.ref_len] for part in parts], axis=0)
    expected = scores.corpus_score(hypotheses, [references]).score
    assert statistics.bleu(sums) == pytest.approx(expected)
    assert statistics.bleu(np.zeros(10)) == 0


def test_answers_are_scored_by_what_they_are():
    image, label = torch.zeros(2, 1, 8, 8), torch.tensor([2, 0])
    proba = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.9, 0.0]])
    batch = ImageBatch(image, label)
    scores = scores_by_target({"probability": proba}, target_of(batch), batch)
    assert scores["accuracy"].tolist() == [1, 0]
    assert scores["loss"].tolist() == pytest.approx([-math.log(0.5), -math.log(0.1)])
    targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    values = scores_by_target({"prediction": torch.tensor([[1.0, 4.0], [3.0, 4.0]])}, targets, (image, targets))
    assert {name: score.tolist() for name, score in values.items()} == {"mse": [2, 0], "mae": [1, 0]}
    with pytest.raises(UserError, match="neither probabilities"):
        scores_by_target({"prediction": torch.zeros(2, 3)}, torch.zeros(2), batch)


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
        assert arrays["score.loss"].mean() == pytest.approx(run.status["metrics"]["test/loss"], rel=1e-5)
        assert arrays["score.accuracy"].mean() == pytest.approx(run.status["metrics"]["test/accuracy"], abs=1e-6)
        assert arrays["probability"].shape == (359, 10)
        assert arrays["probability"].argmax(1).tolist() == arrays["prediction"].tolist()
        assert str(arrays["sha256"]) == run.manifest["data"]["test"]["sha256"]
    assert compare(str(worse), str(better), "--samples") == 0
    assert cli("train", "model=nlinear", "data=sunspots", "trainer.max_epochs=1", "name=series") == 0
    assert cli("evaluate", "last", "--save-predictions") == 0
    run = find_run("last")
    (saved,) = run.path.glob("evaluations/*/predictions.npz")
    arrays = np.load(saved)
    assert np.mean(arrays["score.mse"]) == pytest.approx(run.status["metrics"]["test/mse"], rel=1e-4)
    assert int(arrays["block"]) == 2 * arrays["prediction"].shape[1]


@pytest.mark.slow
def test_evaluate_saves_how_well_a_language_model_and_a_translator_did_on_each_sample(workdir: Path):
    words = ["the", "old", "man", "sits", "on", "the", "bank", "of", "the", "river", "and", "reads"]
    (workdir / "prose.txt").write_text(" ".join(words[(i * i + i // 7) % len(words)] for i in range(300)))
    text = ["data=text", "data.path=prose.txt", "data.window=8", "data.batch_size=4", "data.eval_streams=4"]
    model = ["model.net.hidden_size=16", "trainer.max_epochs=1"]
    assert cli("train", *text, "model=lstm_lm", *model, "name=lm") == 0
    files = ",".join(map(str, corpus(workdir)))
    sizes = [f"data.source_vocab_size={VOCAB}", f"data.target_vocab_size={VOCAB}", "data.batch_size=16"]
    translator = ["model=seq2seq", "model.net.embedding_dim=12", "model.max_length=20", *model]
    assert cli("train", "data=pairs", f"data.train=[{files}]", *sizes, *translator, "name=mt") == 0
    for name, metric, of_sums in (("lm", "loss", statistics.ratio), ("mt", "bleu", statistics.bleu)):
        [path] = Path("runs", name).iterdir()
        assert cli("evaluate", str(path), "--save-predictions") == 0
        [saved] = path.glob("evaluations/*/predictions.npz")
        expected = Run(path).status["metrics"][f"test/{metric}"]
        assert of_sums(np.load(saved)[f"score.{metric}"].sum(0)) == pytest.approx(expected, rel=1e-5)
