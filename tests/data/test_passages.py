"""Labelled texts are read from tables and folders and cut to a length; padding does not change their class."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from leyden.data.text.passages import TextTable
from leyden.data.text.stdlib_docs import PACKAGES, StdlibDocs
from leyden.errors import UserError
from leyden.evaluation.predict import predict
from leyden.nets.text_classifier import TextClassifier, TransformerTextClassifier
from leyden.run.find import list_runs
from support.processes import cli
from support.series import apart, needs_polars

WORDS = {"sea": "wave salt harbour tide gull", "hill": "stone ridge pine summit goat"}


def rows(count: int = 40) -> list[tuple[str, str]]:
    rng = np.random.default_rng(0)
    names = [list(WORDS)[k] for k in rng.integers(2, size=count)]
    return [(" ".join(rng.choice(WORDS[name].split(), rng.integers(2, 9))), name) for name in names]


def write_table(path: Path, columns: tuple[str, str] = ("text", "label")) -> Path:
    """Write the same texts in the format that the file's name says, or as a folder."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows()])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows()))
    elif path.suffix == ".parquet":
        import polars

        polars.DataFrame(rows(), schema=list(columns), orient="row").write_parquet(path)
    else:
        for k, (text, name) in enumerate(rows()):
            file = path / name / f"{k:02}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return path


def table(train: Path, **options) -> TextTable:
    settings = {"num_classes": 2, "vocab_size": 30, "tokenizer": "word", "batch_size": 8, "max_length": 6}
    return TextTable(train, **settings | options)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", pytest.param("a.parquet", marks=needs_polars), "folder"])
def test_tables_and_folders_hold_the_same_texts(tmp_path: Path, name: str):
    if name == "a.parquet":
        apart(hold_the_same_texts, tmp_path, name)
    else:
        hold_the_same_texts(tmp_path, name)


def hold_the_same_texts(tmp_path: Path, name: str) -> None:
    data = table(write_table(tmp_path / name))
    data.setup()
    assert data.classes == ["hill", "sea"]
    assert str(data).startswith("TextTable: texts of up to 6 tokens")
    pairs = [
        (text, data.classes[label])
        for split in data._splits.values()
        for text, label in zip(split.texts, split.labels, strict=True)
    ]
    assert sorted(pairs) == sorted(rows())
    assert {name: facts["size"] for name, facts in data.fingerprint().items()} == {"train": 32, "val": 4, "test": 4}


def test_batches_hold_the_first_tokens_of_each_text(tmp_path: Path):
    data = table(write_table(tmp_path / "a.csv", ("body", "topic")), text="body", target="topic")
    data.setup()
    tokenizer = data.schema.input.tokenizer
    seen = []
    for batch in data.train_dataloader():
        assert batch.token.shape[1] == batch.length.max() <= 6
        for ids, length, label in zip(*batch, strict=True):
            assert not ids[length:].any()
            seen.append((tokenizer.decode(ids[:length].tolist()).split(), label.item()))
    train = data._splits["train"]
    expected = [(text.split()[:6], label) for text, label in zip(train.texts, train.labels, strict=True)]
    assert sorted(seen) == sorted(expected)
    other = table(tmp_path / "gone.csv")
    other.load_state_dict(data.state_dict())
    assert other.classes == ["hill", "sea"]
    [samples] = other.schema.read([tmp_path / "a.csv"])  # by the column that training read
    assert len(samples.names) == 40
    assert any(remark.endswith("only its first 6 tokens are read") for remark in samples.remarks)


@pytest.mark.parametrize("kind", ["lstm", "gru", "transformer"])
def test_padding_never_changes_a_classification(kind: str):
    torch.manual_seed(0)
    net = (
        TransformerTextClassifier(20, 3, 16, num_heads=2)
        if kind == "transformer"
        else TextClassifier(20, 3, 8, cell=kind, hidden_size=8, bidirectional=True)
    ).double()
    token, length = torch.randint(20, (4, 9)), torch.tensor([9, 4, 1, 7])
    logits = net(token, length)
    for row, count, expected in zip(token, length, logits, strict=True):
        torch.testing.assert_close(net(row[None, :count], count[None])[0], expected)
    assert not torch.equal(net(token.flip(1), length)[0], logits[0])  # the order of the words counts


def test_targets_may_be_labels_or_a_number(tmp_path: Path):
    rows_of_table = [{"text": f"word {n}", "label": ["sea", "hill"][: n % 3], "size": n / 2} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows_of_table)))
    labels = table(tmp_path / "a.jsonl", answer="labels")
    labels.setup()
    assert labels.classes == ["hill", "sea"]
    batch = next(iter(labels.test_dataloader()))
    assert batch.label.dtype == torch.float32
    assert batch.label.shape[1] == 2
    numbers = table(tmp_path / "a.jsonl", answer="number", target="size", unit="m", num_classes=1)
    numbers.setup()
    assert numbers.classes == []
    field, val = numbers.schema.answer, numbers._splits["val"].labels
    assert (field.kind, field.unit) == ("number", "m")
    batches = torch.cat([batch.label for batch in numbers.val_dataloader()])
    np.testing.assert_allclose(batches * field.std + field.mean, val, rtol=1e-5)  # float32
    wrong = {
        "number": {"answer": "number", "num_classes": 1},
        "sampling": {"answer": "labels", "sampling": "balanced"},
        "3 labels": {"answer": "labels", "num_classes": 3},
    }
    messages = {
        "number": r"a\.jsonl:1: label is \[\], which cannot be read as data\.answer=number$",
        "sampling": r"^data\.sampling=balanced needs one class for each sample, not answer=labels$",
        "3 labels": r"^data\.num_classes=3 does not fit the files: write data\.num_classes=2",
    }
    for name, options in wrong.items():
        with pytest.raises(UserError, match=messages[name]):
            table(tmp_path / "a.jsonl", **options).setup()


@pytest.mark.slow
def test_it_learns_labels_and_numbers_of_texts(workdir: Path):
    words = [f"{'red ' * (n % 3)}{'blue ' * (n % 2)}end" for n in range(120)]
    lines = [{"text": text, "label": sorted({*text.split()} - {"end"}), "size": text.count("red")} for text in words]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = ["data=text_table", "data.train=a.jsonl", "data.tokenizer=word", "data.vocab_size=9", "data.test_size=20"]
    train = [
        "train",
        *data,
        "model.net.hidden_size=8",
        "optimizer.lr=2e-2",
        "trainer.max_epochs=12",
        "data.batch_size=8",
    ]
    labels = ["model=gru_text_multi_label", "data.answer=labels", "data.num_classes=2", "name=labels"]
    numbers = [
        "model=gru_text_regressor",
        "data.answer=number",
        "data.target=size",
        "data.num_classes=1",
        "name=numbers",
    ]
    assert cli(*train, *labels) == cli(*train, *numbers) == 0
    runs = {run.name.partition("/")[0]: run for run in list_runs()}
    assert runs["labels"].status["metrics"]["test/exact_match"] == 1
    assert runs["numbers"].status["metrics"]["test/r2"] > 0.9
    [answer] = predict(runs["labels"], "red blue end")
    assert answer["labels"] == ["blue", "red"]
    [answer] = predict(runs["numbers"], "red red end")
    assert answer["prediction"] == pytest.approx(2, abs=0.5)


@pytest.mark.slow
def test_it_learns_from_a_table_and_names_the_class_of_new_texts(workdir: Path):
    path = write_table(workdir / "places.csv")
    data = ["data=text_table", f"data.train={path}", "data.num_classes=2", "data.vocab_size=300", "data.batch_size=8"]
    train = ["train", *data, "data.test_size=10", "optimizer.lr=1e-2", "trainer.max_epochs=8"]
    assert cli(*train, "model=gru_text_classifier", "model.net.hidden_size=8", "data.sampling=balanced") == 0
    [run] = list_runs()
    assert run.status["metrics"]["test/accuracy"] == 1
    path.unlink()
    answers = list(predict(run, ["gull and tide", "a goat on the summit ridge"]))
    assert [answer["label"] for answer in answers] == ["sea", "hill"]


def test_docstrings_are_always_there():
    data = StdlibDocs(num_classes=8, vocab_size=500)
    data.setup()
    texts = [text for split in data._splits.values() for text in split.texts]
    assert len(texts) == len(set(texts)) > 1500
    assert data.classes == list(PACKAGES)
    assert min(data.schema.answer.counts) > 50


CASES = {
    "no column": ("a.csv", "words,label\na,b\n", r"a\.csv has no column 'text'"),
    "no label": ("a.csv", "text,label\nsome words,\n", r"a\.csv\[0\] has no label$"),
    "no text": ("a.jsonl", '{"text": 3, "label": "x"}\n', r"a\.jsonl:1: text is 3, not a text$"),
    "three classes": (
        "a.jsonl",
        "".join(f'{{"text": "t", "label": {k}}}\n' for k in range(30)),
        r"write data\.num_classes=30$",
    ),
    "another kind of file": ("a.docx", "x", r"a\.docx: its name must end in \.jsonl, \.csv, \.parquet, or it must be"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_read_is_named(tmp_path: Path, case: str):
    name, content, message = CASES[case]
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        table(tmp_path / name).setup()


def test_other_wrong_arguments_are_named(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"^data\.tokenizer=byte has 256 tokens, but data\.vocab_size=30: set it to 256$"
    ):
        table(tmp_path, tokenizer="byte")
    with pytest.raises(UserError, match=r"^data\.train=.* holds no CLASS/TEXT\.txt$"):
        table(tmp_path).setup()
