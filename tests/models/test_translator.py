"""A translator learns, measures the whole split as sacrebleu does, and resumes in the middle of an epoch bit for bit."""

import math
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from leyden.batch import PairBatch
from leyden.cli import main
from leyden.data.text.pairs import Pairs
from leyden.figures import plots
from leyden.models.text.translator import Translator
from leyden.nets.seq2seq import Seq2Seq
from leyden.run.find import list_runs
from support.processes import cli, forked
from support.trainer import trainer
from support.training import assert_same, at_step
from support.translation import FORMS, VOCAB, corpus, net, pairs, pairs_data, phrases

ADAM = partial(torch.optim.Adam, lr=2e-2)


def translator(module: Pairs, **options) -> Translator:
    torch.manual_seed(0)
    built = Seq2Seq(*map(len, module.vocabularies), embedding_dim=24, hidden_size=32, **options)
    model = Translator(built, ADAM, max_length=40)
    model.schema = module.schema
    return model


def learn(model: Translator, batch: PairBatch, steps: int = 100) -> None:
    optimizer = model.configure_optimizers()
    for _ in range(steps):
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"input_feeding": True, "cell": "gru", "attention": "additive"}])
def test_it_learns_one_batch_by_heart(tmp_path, options):
    module = phrases(tmp_path)
    model = translator(module, **options)
    batch = module.train_dataloader().batch(0, 0)
    learn(model, batch)
    decode = module.vocabularies[1].decode
    truth = decode(batch.target.tolist())
    greedy = model.eval().translate(batch, beam_size=1).token
    assert decode(greedy.tolist()) == truth
    assert torch.equal(greedy, batch.target[:, 1:])
    assert decode(model.predict_step(batch, 0)["token"].tolist()) == truth


def test_metrics_are_those_of_the_whole_split_and_bleu_is_sacrebleus(tmp_path):
    sacrebleu = pytest.importorskip("sacrebleu")
    module = phrases(tmp_path, eval_batch_size=2)
    model = translator(module)
    learn(model, module.train_dataloader().batch(0, 0))
    drawn = []
    model.log_figure = lambda name, draw: drawn.append((name, draw()))
    for stage, beam in (("val", 1), ("test", 5)):
        run, loader = (
            (trainer().validate, module.val_dataloader())
            if stage == "val"
            else (trainer().test, module.test_dataloader())
        )
        got = run(model, loader, verbose=False)[0]
        losses, hits, found, true = [], [], [], []
        with torch.no_grad():
            for batch in loader:
                log_p = model(batch.source, batch.source_length, batch.target[:, :-1]).double().log_softmax(2)
                for b, length in enumerate(batch.target_length.tolist()):
                    for t in range(length - 1):
                        losses.append(-log_p[b, t, batch.target[b, t + 1]].item())
                        hits.append(log_p[b, t].argmax().item() == batch.target[b, t + 1].item())
                found += module.vocabularies[1].decode(model.translate(batch, beam_size=beam).token.tolist())
                true += module.vocabularies[1].decode(batch.target.tolist())
        assert sorted(true) == sorted(module._splits[stage].target)
        loss = sum(losses) / len(losses)
        assert got[f"{stage}/loss"] == pytest.approx(loss, rel=1e-5)
        assert got[f"{stage}/perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert got[f"{stage}/accuracy"] == pytest.approx(sum(hits) / len(hits), rel=1e-5)
        bleu = sacrebleu.corpus_bleu(found, [true], smooth_method="none").score
        assert 1 < bleu < 100
        assert got[f"{stage}/bleu"] == pytest.approx(bleu, rel=1e-5)
    assert [name for name, _ in drawn] == ["test/attention_1", "test/attention_2", "test/attention_3"]


@pytest.mark.parametrize("lowercase", [False, True])
def test_bleu_of_real_sentences_is_sacrebleus(lowercase):
    sacrebleu = pytest.importorskip("sacrebleu")
    text = "Zwei junge Männer sind im Freien -- in der Nähe (vieler) Büsche, U.S. 3.5% \"so\".|A man's hat; it's red.|Two dogs"
    true = text.split("|")
    found = [true[0].replace("vieler", "Vieler").replace(", ", " "), "a man's hat is red .", "Two dogs run"]
    model = Translator(net(), ADAM, lowercase=lowercase)
    model.bleu.update(found, [[line] for line in true])
    expected = sacrebleu.corpus_bleu(found, [true], lowercase=lowercase, smooth_method="none").score
    assert 100 * model.bleu.compute().item() == pytest.approx(expected, rel=1e-5)


class NeverWait(TorchDispatchMode):
    """Refuses what makes the host wait for a device: values read, and results whose size depends on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket._qualified_op_name not in ("aten::_local_scalar_dense", "aten::nonzero"), (
            function
        )
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", FORMS[:3], ids=lambda form: "-".join(map(str, form.values())))
def test_the_training_step_never_waits_for_the_device(form):
    model, batch = Translator(net(**form).train(), ADAM, label_smoothing=0.1), pairs([5, 3, 1], [6, 4, 2])
    with NeverWait():
        model.training_step(batch, 0).backward()


def test_label_smoothing_leaves_padding_out():
    model, batch = Translator(net(), ADAM, label_smoothing=0.1), pairs([3, 2], [5, 3])
    logits = model(batch.source, batch.source_length, batch.target[:, :-1])
    terms = []
    for b, length in enumerate(batch.target_length.tolist()):
        for t in range(length - 1):
            log_p = logits[b, t].log_softmax(0)
            terms.append(0.9 * log_p[batch.target[b, t + 1]] + 0.1 * log_p.mean())
    torch.testing.assert_close(model.training_step(batch, 0).double(), -torch.stack(terms).mean(), rtol=1e-6, atol=0)


def test_an_attention_map_has_a_row_for_each_word():
    figure = plots.attention_map(np.eye(2, 3), ["▁ein", "▁Hund", "END"], ["▁a", "▁dog"])
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["▁a", "▁dog"]
    assert axis.images[0].get_array().shape == (2, 3)


def test_a_killed_run_resumes_in_the_middle_of_an_epoch(workdir):
    files = corpus(workdir)
    overrides = [
        "data=pairs",
        f"data.train=[{files[0]},{files[1]}]",
        f"data.source_vocab_size={VOCAB}",
        f"data.target_vocab_size={VOCAB}",
        "data.batch_size=16",
        "model=seq2seq",
        "model.net.embedding_dim=12",
        "model.net.hidden_size=16",
        "model.net.num_layers=2",
        "model.max_length=20",
        "callbacks=ema",
        "trainer.max_epochs=3",
        "trainer.log_every_n_steps=3",
    ]
    assert cli("train", *overrides) == 0

    def killed() -> int:
        at_step(13, lambda: os.kill(os.getpid(), signal.SIGKILL))
        return main(["train", *overrides, "+checkpoint.every_n_steps=5"])

    assert forked(killed) == -signal.SIGKILL
    assert cli("resume", "last") == 0
    reference, run = list_runs()
    assert_same(run, reference)
    assert "test/bleu" in run.status["metrics"]
    saved = torch.load(run.path / "checkpoints/last.ckpt", weights_only=True)
    fresh = pairs_data(files, batch_size=16)
    fresh.setup()
    assert saved["Pairs"] == fresh.state_dict()
    assert {path.name for path in (run.path / "figures/test").iterdir()} == {"attention_1.png"}
    rows = [line.split("\t") for line in (run.path / "samples/test/translations.txt").read_text().split("\n")[:-1]]
    corpora = {name: sorted(row[column] for row in rows) for column, name in enumerate(("source", "target"))}
    assert corpora == {name: sorted(getattr(fresh._splits["test"], name)) for name in corpora}
