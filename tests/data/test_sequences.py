"""Padding has no effect on sequences of unequal length; only the training part sets the scale; broken files are named."""

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score
from torch import nn

from leyden.batch import SequenceBatch
from leyden.config.instantiate import instantiate
from leyden.data.sequences.japanese_vowels import JapaneseVowels
from leyden.data.sequences.sequences import Examples, TsFiles
from leyden.errors import UserError
from leyden.evaluation.answers import answer, to_records
from leyden.models.classifier import Classifier
from leyden.nets.recurrent import SequenceClassifier
from leyden.preparation.ts_file import read_ts
from support.schemas import read, words
from support.sequences import InMemorySequences, examples
from support.trainer import trainer
from support.training import equal, train_and_resume

ADAM = partial(torch.optim.AdamW, lr=1e-2)
VOWELS = {"num_classes": 9, "num_features": 12}
TS = """# a comment
@problemName mine
@timeStamps false
@classLabel true up down

@data
1,2,3:10,20,30:up
# another
-4.5:1e2:down
"""


def test_a_ts_file_is_read(tmp_path: Path):
    (tmp_path / "f.ts").write_text(TS)
    series, labels, classes = read_ts(tmp_path / "f.ts")
    assert classes == ["up", "down"]
    assert labels.tolist() == [0, 1]
    assert [values.tolist() for values in series] == [[[1, 10], [2, 20], [3, 30]], [[-4.5, 100]]]


BROKEN = {
    "no data": ("@classLabel true a b\n1:a\n", "has no line @data: it is not a .ts file"),
    "no classes": ("@classLabel false\n@data\n1:2.5\n", "names no classes"),
    "time stamps": (TS.replace("timeStamps false", "timeStamps true"), "has @timeStamps true"),
    "another class": (TS.replace(":up", ":left"), "line 7: the class 'left' is none of @classLabel up down"),
    "lengths": (TS.replace("10,20,30", "10,20"), r"line 7: the dimensions of an example have the lengths \[3, 2\]"),
    "dimensions": (TS.replace("-4.5:1e2", "-4.5"), "line 9: 1 dimensions, but the lines before have 2"),
    "missing": (TS.replace("20", "?"), "line 7: a value is missing"),
    "empty": (TS.replace("20", ""), "line 7: a value is missing"),
    "NaN": (TS.replace("20", "NaN"), "line 7: a value is missing or infinite"),
    "no number": (TS.replace("20", "x2"), "line 7: not all values are numbers"),
    "no example": (TS[: TS.index("1,2,3")], "has no example after @data"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_ts_file_that_is_broken_is_named_with_its_line(tmp_path: Path, case: str):
    text, message = BROKEN[case]
    (tmp_path / "f.ts").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_ts(tmp_path / "f.ts")
    assert str(caught.value).startswith(str(tmp_path / "f.ts"))
    assert "\n" not in str(caught.value)


def test_a_ts_file_that_is_no_text_is_named_with_the_byte(tmp_path: Path):
    (tmp_path / "f.ts").write_bytes(TS.encode() + b"\xff")
    with pytest.raises(UserError, match=f"f.ts is not UTF-8: byte {len(TS)} is 0xff; convert it with iconv"):
        read_ts(tmp_path / "f.ts")


@pytest.mark.skipif(find_spec("sktime") is None, reason="sktime is not here")
def test_japanese_vowels_are_the_published_ones():
    data = JapaneseVowels(**VOWELS, val_size=54, eval_batch_size=54)
    data.setup()
    train, test = data.read()
    assert (len(train.labels), len(test.labels)) == (270, 370)
    assert np.bincount(train.labels).tolist() == [30] * 9
    assert np.bincount(test.labels).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    lengths = [len(values) for values in train.series + test.series]
    assert (min(lengths), max(lengths)) == (7, 29)
    assert train.series[0][0, :2].tolist() == pytest.approx([1.860936, -0.207383])
    assert {name: facts["size"] for name, facts in data.fingerprint().items()} == {"train": 216, "val": 54, "test": 370}
    (batch,) = data.val_dataloader()
    assert [batch.label.bincount().tolist(), batch.length.max().item()] == [[6] * 9, batch.input.shape[1]]


def test_batches_hold_each_example_once_scaled_and_as_long_as_the_longest():
    train, test = examples(60), examples(31, seed=1)
    data = InMemorySequences(train, test, batch_size=8, eval_batch_size=7, val_size=12)
    data.setup()
    loader = data.train_dataloader()
    assert len(loader) == 6
    steps = np.concatenate(data._splits["train"].series)
    for batches, part in ((list(loader), "train"), (list(data.test_dataloader()), "test")):
        rows = []
        for batch in batches:
            assert batch.input.shape[1] == batch.length.max()
            for x, length, label in zip(*batch, strict=True):
                assert not x[length:].any()
                rows.append((label.item(), x[:length].numpy() * steps.std(0) + steps.mean(0)))
        wanted = data._splits[part]
        assert len(rows) == len(wanted.labels)
        order = lambda row: (row[0], *np.round(row[1], 3).flatten())  # noqa: E731
        pairs = zip(
            sorted(rows, key=order), sorted(zip(wanted.labels, wanted.series, strict=True), key=order), strict=True
        )
        for (label, values), (other, series) in pairs:
            assert label == other
            np.testing.assert_allclose(values, series, atol=1e-5)
    assert equal(next(iter(loader)), loader.batch(1, 0))  # the second epoch, in an order of its own
    assert not equal(loader.batch(0, 0), loader.batch(1, 0))


def test_rare_classes_are_drawn_as_often_as_others():
    train = examples(300)
    rare = np.flatnonzero((train.labels != 2) | (np.cumsum(train.labels == 2) <= 20))
    data = InMemorySequences(train.take(rare), examples(9), val_size=3, batch_size=50, sampling="balanced")
    data.setup()
    loader = data.train_dataloader()
    counts = sum(batch.label.bincount(minlength=3) for _ in range(4) for batch in loader)
    assert counts.sum() == 4 * 200  # as many as there are, in whole batches
    assert (counts / counts.sum() - 1 / 3).abs().max() < 0.07  # four deviations


def test_training_never_sees_the_other_parts():
    train, test = examples(60), examples(31, seed=1)
    one = InMemorySequences(train, test, val_size=12)
    one.setup()
    other = Examples([series.copy() for series in train.series], train.labels)
    held_out = [series for series in other.series if any(np.array_equal(series, v) for v in one._splits["val"].series)]
    for series in held_out:
        series *= 1e3
    two = InMemorySequences(other, examples(5, seed=2), val_size=12)
    two.setup()
    assert len(held_out) == 12
    assert equal(list(one.train_dataloader()), list(two.train_dataloader()))


def test_facts_that_the_files_do_not_hold_are_told():
    data = InMemorySequences(examples(30), examples(5))
    data.num_classes = 4
    with pytest.raises(UserError, match=r"data.num_classes=4 does not fit the files: write data.num_classes=3"):
        data.setup()
    with pytest.raises(UserError, match=r"data.limit=40 is larger than the 24 training examples"):
        InMemorySequences(examples(30), examples(5), limit=40).setup()


@settings(deadline=None, max_examples=30)
@given(
    cell=st.sampled_from(["lstm", "gru", "rnn"]),
    pool=st.sampled_from(["mean", "max", "last"]),
    bidirectional=st.booleans(),
    layers=st.integers(1, 2),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_padding_never_changes_a_classification(cell, pool, bidirectional, layers, lengths, seed):
    torch.manual_seed(seed)
    net = SequenceClassifier(3, 4, 5, pool, cell=cell, bidirectional=bidirectional, num_layers=layers).double()
    length = torch.tensor(lengths)
    x = torch.randn(
        len(lengths), int(length.max()) + seed % 3, 3, dtype=torch.float64
    )  # what lies past the ends is noise
    together = net(x, length)
    alone = torch.cat([net(row[None, :n], torch.tensor([n])) for row, n in zip(x, lengths, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-12)


def test_it_learns_one_batch_by_heart():
    torch.manual_seed(0)
    data = InMemorySequences(examples(40), examples(9), batch_size=16, limit=16)
    data.setup()
    model = Classifier(SequenceClassifier(2, 3, 16, cell="gru", bidirectional=True), 3, ADAM)
    trainer(max_epochs=150).fit(model, data.train_dataloader())
    got = trainer().validate(model, data.train_dataloader(), verbose=False)[0]
    assert got["val/accuracy"] == 1
    assert got["val/loss"] < 0.1


class Means(nn.Module):
    """The mean of each of three features, as logits."""

    def forward(self, x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        return x.sum(1) / length[:, None]


def test_metrics_equal_scikit_learns_and_predictions_name_the_classes():
    data = InMemorySequences(examples(40), examples(101, features=3), eval_batch_size=16)
    data.num_features = 3
    data.parts = examples(40, features=3), data.parts[1]
    data.setup()
    model = Classifier(Means(), 3, ADAM, classes=data.classes)
    got = trainer().test(model, data.test_dataloader(), verbose=False)[0]
    batches = list(data.test_dataloader())
    label = torch.cat([batch.label for batch in batches])
    guess = torch.cat([Means()(batch.input, batch.length).argmax(1) for batch in batches])
    assert got["test/accuracy"] == pytest.approx(accuracy_score(label, guess))
    assert got["test/f1"] == pytest.approx(f1_score(label, guess, average="macro"), rel=1e-5)
    records = [row for [row] in to_records(data.schema.answer, answer(model, batches[0], data.schema.answer), {})]
    assert [row["label"] for row in records] == ["abc"[k] for k in guess[:16]]
    for row in records:
        assert row["probabilities"][row["label"]] == row["probability"] == max(row["probabilities"].values())
        assert sum(row["probabilities"].values()) == pytest.approx(1)


def test_the_training_step_never_waits_for_the_device():
    net = SequenceClassifier(2, 3, 4, cell="rnn", pool="max")
    net.recurrent = StandIn()  # the cells' own backward is not for `meta`
    model = Classifier(net, 3, ADAM).to("meta")
    x, length = torch.empty(5, 6, 2, device="meta"), torch.empty(5, dtype=torch.long, device="meta")
    model.training_step(SequenceBatch(x, length, length), 0).backward()


class StandIn(nn.Module):
    def forward(self, x: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x.repeat(1, 1, 2), None


def write_ts(path: Path, num: int, seed: int = 0) -> None:
    series, labels = examples(num, seed=seed)
    lines = [
        ":".join([*(",".join(map(str, column)) for column in values.T.tolist()), "abc"[label]])
        for values, label in zip(series, labels, strict=True)
    ]
    path.write_text("@timeStamps false\n@classLabel true a b c\n@data\n" + "\n".join(lines))


TRAIN = [
    "data=ts", "data.train=f.ts", "data.num_classes=3", "data.num_features=2", "data.batch_size=8",
    "model=gru_classifier", "model.net.hidden_size=8", "model.net.num_layers=2", "+model.net.dropout=0.2",
    "model.net.input_dropout=0.1", "model.net.output_dropout=0.2", "optimizer.lr=1e-2", "trainer.max_epochs=3",
]  # fmt: skip


@pytest.mark.slow
def test_killed_and_resumed_it_ends_alike_and_labels_new_files_without_the_old(workdir: Path):
    write_ts(workdir / "f.ts", 70)
    whole, resumed = train_and_resume(8, *TRAIN)
    assert whole.status["metrics"] == resumed.status["metrics"]

    from leyden.checkpoints.choose import choose
    from leyden.evaluation import load

    write_ts(workdir / "new.ts", 25, seed=3)
    fresh = instantiate(whole.config["data"], "data")
    fresh.setup()
    (workdir / "f.ts").unlink()
    model, data = load.load(whole.config, choose(whole))
    batches = list(read(data, [workdir / "new.ts"], 8))
    assert equal(batches[0][1], next(read(fresh, [workdir / "new.ts"], 8))[1])
    names = [name for some, _ in batches for name in some]
    assert names[:2] == [f"{workdir / 'new.ts'}[0]", f"{workdir / 'new.ts'}[1]"]
    wanted = ["abc"[k] for k in examples(25, seed=3).labels]
    labels = [row["label"] for row in words(model, data, [workdir / "new.ts"], 8)]
    assert np.mean([label == right for label, right in zip(labels, wanted, strict=True)]) > 0.6
    (workdir / "wide.ts").write_text(TS.replace("up down", "a b c").replace(":up", ":7,8,9:a").replace(":down", ":7:b"))
    with pytest.raises(UserError, match=r"wide\.ts\[0\] has 3 values at each step, but data.num_features=2"):
        list(read(data, [workdir / "wide.ts"]))


def test_your_own_test_file_must_have_the_same_classes(tmp_path: Path):
    write_ts(tmp_path / "a.ts", 30)
    (tmp_path / "b.ts").write_text((tmp_path / "a.ts").read_text().replace("true a b c", "true c b a"))
    with pytest.raises(UserError, match=r"b.ts has the classes \['c', 'b', 'a'\], but \S+a.ts has \['a', 'b', 'c'\]"):
        TsFiles(tmp_path / "a.ts", tmp_path / "b.ts", num_classes=3, num_features=2).setup()


def test_a_number_may_be_the_target_of_a_sequence(tmp_path: Path):
    series, _ = examples(40)
    lines = [
        ":".join([*(",".join(map(str, column)) for column in values.T.tolist()), str(number / 4)])
        for number, values in enumerate(series)
    ]
    header = "@timeStamps false\n@targetLabel true\n@data\n"
    (tmp_path / "a.ts").write_text(header + "\n".join(lines))
    data = TsFiles(tmp_path / "a.ts", answer="number", unit="s", num_classes=1, num_features=2, batch_size=8)
    data.setup()
    field, batch = data.schema.answer, next(iter(data.test_dataloader()))
    assert (field.kind, field.unit, data.classes) == ("number", "s", [])
    test = data._splits["test"].labels
    np.testing.assert_allclose(batch.label * field.std + field.mean, test, rtol=1e-5)  # float32
    [samples] = data.schema.read([tmp_path / "a.ts"])
    assert len(samples.names) == 40
    write_ts(tmp_path / "classes.ts", 9)
    (tmp_path / "bad.ts").write_text(header + lines[0] + "x")
    wrong = {
        r"a\.ts has a number for each sequence: set data\.answer=number$": ("a.ts", "class"),
        r"classes\.ts has a class for each sequence: set data\.answer=class$": ("classes.ts", "number"),
        r"bad\.ts, line 4: the target '0\.0x' is not a finite number$": ("bad.ts", "number"),
    }
    for message, (name, kind) in wrong.items():
        with pytest.raises(UserError, match=message):
            TsFiles(tmp_path / name, answer=kind, num_classes=1, num_features=2).setup()


def test_the_scale_and_the_classes_of_a_checkpoint_stay_its_own(tmp_path: Path):
    write_ts(tmp_path / "a.ts", 30)
    (tmp_path / "b.ts").write_text((tmp_path / "a.ts").read_text().replace("true a b c", "true c b a"))
    learned, same, other = (TsFiles(tmp_path / f"{name}.ts", num_classes=3, num_features=2, limit=limit)
                            for name, limit in (("a", None), ("a", 8), ("b", None)))  # fmt: skip
    learned.setup()
    for data in (same, other):
        data.load_state_dict(json.loads(json.dumps(learned.state_dict())))
    same.setup()
    assert same.state_dict() == learned.state_dict()
    assert equal(next(iter(same.test_dataloader())), next(iter(learned.test_dataloader())))
    with pytest.raises(
        UserError, match=r"b.ts has the classes \['c', 'b', 'a'\], but the model learned \['a', 'b', 'c'\]"
    ):
        other.setup()


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("leyden.data.download.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'leyden\[series\]'"):
        JapaneseVowels(**VOWELS).setup()
