"""In every kind of data, a fold holds the same examples for all seeds, and training learns nothing from it."""

import csv
import os
import re
import signal
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightning import LightningDataModule
from omegaconf import OmegaConf
from PIL import Image

from leyden.cli import main
from leyden.config.locations import CONF
from leyden.config.yaml_files import choices, with_bases
from leyden.data.images.image_folder import ImageFolder
from leyden.data.images.images import Images, Split
from leyden.data.sequences.sequences import Examples
from leyden.data.split import set_aside
from leyden.data.text.text_files import TextFiles
from leyden.errors import UserError
from leyden.folds import Fold
from leyden.preparation.subwords import Subwords
from leyden.run.find import list_runs
from support.processes import cli, forked
from support.sequences import InMemorySequences, examples
from support.series import InMemorySeries, join_batches, random_walk
from support.training import at_step
from support.translation import VOCAB, corpus, pairs_data, write

pytestmark = pytest.mark.usefixtures("undrawn")


def made(data: LightningDataModule) -> LightningDataModule:
    data.setup()
    return data


# How a fold is chosen


@st.composite
def labelled(draw: st.DrawFn, grouped: bool) -> tuple[int, np.ndarray, np.ndarray]:
    """Folds, labels (N,) and groups (N,), with as many examples (groups) of each class as there are folds or more."""
    folds, num_classes = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    units = [draw(st.integers(folds, folds + 9)) for _ in range(num_classes)]
    label = np.repeat(np.arange(num_classes), units)
    size = np.array([draw(st.integers(1, 5)) for _ in label]) if grouped else 1
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(np.sum(np.ones_like(label) * size))
    return folds, np.repeat(label, size)[order], np.repeat(np.arange(len(label)), size)[order]


def parts(folds: int, labels: np.ndarray, **options) -> list[np.ndarray]:
    """The examples of each fold; those that are trained on are the others."""
    options = {"seed": 0, "stratify": True} | options
    chosen = []
    for k in range(folds):
        part, rest = set_aside("data.folds", Fold(k, folds), labels, **options)
        assert sorted([*part, *rest]) == list(range(len(labels)))
        chosen.append(part)
    return chosen


@settings(deadline=None, max_examples=60)
@given(case=labelled(grouped=False), stratify=st.booleans(), seed=st.integers(0, 2**40))
def test_the_folds_are_everything_once_and_equal(case, stratify, seed):
    folds, labels, _ = case
    chosen = parts(folds, labels, stratify=stratify, seed=seed)
    assert sorted(np.concatenate(chosen)) == list(range(len(labels)))
    assert np.ptp([len(part) for part in chosen]) <= 1
    if stratify:
        counts = np.array([np.bincount(labels[part], minlength=labels.max() + 1) for part in chosen])
        assert np.ptp(counts, axis=0).max() <= 1
    again = parts(folds, labels, stratify=stratify, seed=seed)
    assert all(np.array_equal(one, other) for one, other in zip(chosen, again, strict=True))


@settings(deadline=None, max_examples=60)
@given(case=labelled(grouped=True), stratify=st.booleans())
def test_no_fold_parts_a_group(case, stratify):
    folds, labels, groups = case
    chosen = parts(folds, labels, stratify=stratify, groups=groups)
    assert sorted(np.concatenate(chosen)) == list(range(len(labels)))
    held = [set(groups[part]) for part in chosen]
    assert all(held)
    assert sum(map(len, held)) == len(set(groups))


@settings(deadline=None, max_examples=60)
@given(case=labelled(grouped=True), size=st.floats(0.2, 0.6), seed=st.integers(0, 9))
def test_a_size_is_come_near_to_with_whole_groups(case, size, seed):
    _, labels, groups = case
    assume(size * len(labels) > np.bincount(groups).max())
    chosen, rest = set_aside("data.val_size", size, labels, seed, stratify=False, groups=groups)
    assert sorted([*chosen, *rest]) == list(range(len(labels)))
    assert not {*groups[chosen]} & {*groups[rest]}
    assert abs(len(chosen) - size * len(labels)) <= np.bincount(groups).max() / 2 + 0.5


def test_whole_groups_keep_the_classes_in_proportion():
    labels, groups = np.repeat([0, 1, 2], [300, 200, 100]), np.arange(600) // 5
    for size in (Fold(2, 5), 0.2):
        val, rest = set_aside("data.val_size", size, labels, 0, stratify=True, groups=groups)
        assert np.bincount(labels[val]).tolist() == [60, 40, 20]
        assert np.bincount(labels[rest[:120]]).tolist() == [60, 40, 20]  # what a limit takes


def test_another_split_seed_makes_other_folds():
    labels = np.repeat([0, 1], 30)
    assert sorted(parts(3, labels, seed=1)[0]) != sorted(parts(3, labels, seed=2)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7, [0, 0, 0, 1, 1, 1, 1, 1, 1, 1], None), "more than the 3 examples of the class 0, but each fold needs one"),
        ((7, [0] * 6, None), "data.folds=7 is more than the 6 examples, but each fold needs one: lower it$"),
        ((4, [0] * 9, [1, 1, 1, 1, 2, 2, 2, 3, 3]), "data.folds=4 is more than the 3 groups, but"),
        ((2, [0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 4, 4]), "the 1 groups of the class 1, .* or set data.stratify=false$"),
    ],
)
def test_too_many_folds_are_counted(arguments, message):
    folds, labels, groups = arguments
    with pytest.raises(UserError, match=message):
        parts(folds, np.array(labels), groups=None if groups is None else np.array(groups))


def test_groups_that_are_too_large_are_told():
    with pytest.raises(UserError, match=r"data\.val_size=0\.1: 1 of 12 examples cannot be set aside without splitting"):
        set_aside("data.val_size", 0.1, np.zeros(12, int), 0, stratify=True, groups=np.arange(12) // 6)


# Images


class Numbered(Images):
    """Examples whose pixels are their number, in three classes."""

    names = ("a", "b", "c")

    def read(self) -> tuple[Split, Split]:
        images = np.arange(210, dtype=np.uint8).reshape(-1, 1, 1, 1)
        labels = np.repeat([0, 1, 2, 0], [50, 60, 90, 10])
        return Split(images[:200], labels[:200]), Split(images[200:], labels[200:])


def numbers(fold: int | None = None, **options) -> Images:
    folds = None if fold is None else 5
    return made(Numbered(num_classes=3, image_shape=(1, 1, 1), folds=folds, fold=fold, **options))


def held(data: Images, name: str) -> list[int]:
    return data._splits[name].images.flatten().tolist()


def test_each_image_is_validated_once_and_the_test_stays():
    folds = [numbers(fold) for fold in range(5)]
    assert sorted(chain(*(held(data, "val") for data in folds))) == list(range(200))
    for data in folds:
        assert sorted(held(data, "train") + held(data, "val")) == list(range(200))
        assert np.bincount(data._splits["val"].labels).tolist() == [10, 12, 18]
        assert data.fingerprint()["test"] == numbers().fingerprint()["test"]


def test_all_seeds_of_a_fold_have_the_same_split():
    prints = [[numbers(fold, seed=seed).fingerprint() for seed in range(3)] for fold in (0, 1)]
    assert all(print_ == prints[fold][0] for fold in (0, 1) for print_ in prints[fold])
    assert prints[0][0]["val"] != prints[1][0]["val"]
    assert numbers(0, val_size=7).fingerprint() == prints[0][0]
    assert numbers(0, split_seed=1).fingerprint()["val"] != prints[0][0]["val"]


def test_limit_takes_of_what_a_fold_trains_on():
    few, whole = numbers(3, limit=40), numbers(3)
    assert set(held(few, "train")) < set(held(whole, "train"))
    assert held(few, "val") == held(whole, "val")
    assert np.abs(np.bincount(few._splits["train"].labels) - [10, 12, 18]).max() <= 2
    with pytest.raises(UserError, match=r"data\.limit=161 is larger than the 160 training examples"):
        numbers(3, limit=161)


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Twelve patients with one to four pictures of one class each, grey as their number: a CSV file."""
    rows = [(p, i) for p in range(12) for i in range(1 + p % 4)]
    with (tmp_path / "all.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "patient"])
        for p, i in rows:
            Image.new("L", (4, 4), p).save(tmp_path / f"{p}-{i}.png")
            table.writerow([f"{p}-{i}.png", "ill" if p < 6 else "well", f"patient {p}"])
    return tmp_path / "all.csv"


def pictured(train: Path, **options) -> ImageFolder:
    return ImageFolder(train, **{"num_classes": 2, "image_shape": (1, 4, 4), "group_by": "patient", **options})


@pytest.mark.parametrize("options", [{"val_size": 0.3}, *({"folds": 3, "fold": k} for k in range(3))])
def test_a_patient_is_in_one_part_alone(patients, options):
    data = made(pictured(patients, **options))
    groups = [{*split.images[:, 0, 0, 0].tolist()} for split in data._splits.values()]
    assert all(groups)
    assert sorted(chain(*groups)) == list(range(12))
    assert all({*split.labels} == {0, 1} for split in data._splits.values())


def test_groups_are_a_column_of_both_tables(patients, tmp_path):
    with pytest.raises(
        UserError, match=r"data\.group_by=patient: patient 0 is both in data\.train=.* and in data\.test"
    ):
        made(pictured(patients, test=patients))
    with pytest.raises(UserError, match=r"\['path', 'label', 'patient'\]; it needs path, label and person"):
        made(pictured(patients, group_by="person"))
    patients.write_text(patients.read_text().replace("patient 11", "", 1))
    with pytest.raises(UserError, match=r"all\.csv gives 11-0\.png no patient"):
        made(pictured(patients))
    (tmp_path / "cat").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cat" / "a.png")
    with pytest.raises(
        UserError, match=r"data\.group_by=patient is a column of a CSV file, but data\.train=.*cat is a"
    ):
        made(pictured(tmp_path / "cat", classes=["cat"]))


# Sequences


def test_a_fold_of_sequences_teaches_nothing_of_its_scale():
    train, test = examples(60), examples(10, seed=1)
    folds = [made(InMemorySequences(train, test, folds=4, fold=k, batch_size=8)) for k in range(4)]
    found = [series.tobytes() for data in folds for series in data._splits["val"].series]
    assert sorted(found) == sorted(series.tobytes() for series in train.series)
    for data in folds:
        hidden = {series.tobytes() for series in data._splits["val"].series}
        louder = [series * (1e3 if series.tobytes() in hidden else 1) for series in train.series]
        other = made(InMemorySequences(Examples(louder, train.labels), test, folds=4, fold=data._fold.number))
        assert other.state_dict() == data.state_dict()
        assert other.fingerprint()["train"] == data.fingerprint()["train"]
        assert other.fingerprint()["val"] != data.fingerprint()["val"]


# Series


def louder(values: np.ndarray, first: int) -> np.ndarray:
    return np.concatenate([values[:first], 1e3 * values[first:]])


@settings(deadline=None, max_examples=40)
@given(
    past=st.integers(1, 5),
    horizon=st.integers(1, 4),
    season=st.integers(1, 5),
    folds=st.integers(2, 5),
    extra=st.integers(0, 9),
)
def test_a_fold_of_a_series_is_trained_on_what_is_before_it_alone(past, horizon, season, folds, extra):
    before = 12 * (folds + 1) + extra
    values = random_walk(before + 12)
    sizes = {"past": past, "horizon": horizon, "season": season, "test_size": 12, "batch_size": 1}
    test = join_batches(made(InMemorySeries(values, val_size=10, **sizes)).test_dataloader()).start
    validated = []
    for k in range(folds):
        options = {"folds": folds, "fold": k, **sizes}
        data = made(InMemorySeries(values, **options))
        trained, val = join_batches(data.train_dataloader()).start, join_batches(data.val_dataloader()).start
        first, size = val.min().item(), before // (folds + 1)
        assert first == before - (folds - k) * size
        assert len(trained)
        assert trained.max() + horizon <= first
        assert sorted(val.tolist()) == list(range(first, first + size - horizon + 1))
        assert join_batches(data.test_dataloader()).start.tolist() == test.tolist()
        validated += range(first, val.max() + horizon)

        end = first + size
        gaps = values.copy()
        gaps[[first - 1, end - 1]] = np.nan
        options["gaps"] = "interpolate"  # which looks ahead
        data, *others = (made(InMemorySeries(v, **options)) for v in (gaps, louder(gaps, first), louder(gaps, end)))
        for other in others:
            assert other.state_dict() == data.state_dict()
            assert other.fingerprint()["train"] == data.fingerprint()["train"]
            ours, theirs = (d.train_dataloader().batch(0, 0) for d in (data, other))
            assert torch.equal(ours.past, theirs.past)
        assert [other.fingerprint()["val"] == data.fingerprint()["val"] for other in others] == [False, True]
    assert validated == list(range(before - folds * (before // (folds + 1)), before))


def test_folds_of_a_series_that_are_too_short_are_told():
    values = random_walk(60)
    sizes = {"past": 8, "horizon": 6, "season": 1, "test_size": 10, "fold": 0}
    with pytest.raises(UserError, match=r"data\.folds=9: 5 steps hold no window: .* needs 14 in all"):
        made(InMemorySeries(values, folds=9, **sizes))
    with pytest.raises(UserError, match=r"data\.folds=50 needs more than the 50 steps before the test part: lower it"):
        made(InMemorySeries(values, folds=50, **sizes))


# Translation and text


def test_a_fold_of_pairs_is_of_train_and_val_together(tmp_path: Path):
    files = corpus(tmp_path)
    other = [write(tmp_path / f"val.{s}", ["zz zz zz", "yy yy yy"]) for s in "ab"]
    plain = made(pairs_data(files, val=other))
    kept = plain._splits["test"]
    folds = [made(pairs_data(files, val=other, folds=3, fold=k)) for k in range(3)]
    everything = plain._splits["train"].join(plain._splits["val"])
    places = [list(zip(*data._splits["val"][2:], strict=True)) for data in folds]
    assert sorted(chain(*places)) == sorted(zip(*everything[2:], strict=True))
    for data in folds:
        assert data._splits["test"] == kept
        val, train = data._splits["val"], data._splits["train"]
        assert not {*zip(val.files, val.line, strict=True)} & {*zip(train.files, train.line, strict=True)}
        for text, files, line in zip(val.source, val.files, val.line, strict=True):
            assert Path(files[0]).read_text().split("\n")[line - 1] == text
        learned = Subwords.learn(train.source, VOCAB)
        assert data.vocabularies[0].state_dict() == learned.state_dict()


def test_a_long_pair_is_named_by_its_own_file(tmp_path: Path):
    files = corpus(tmp_path)
    long = [write(tmp_path / f"val.{s}", ["ab", "ab " * 30]) for s in "ab"]
    told = []
    for k in range(3):
        data = made(pairs_data(files, val=long, folds=3, fold=k, max_length=20))
        try:
            data.val_dataloader()
        except UserError as error:
            told.append(str(error))
    assert [message.split(" is ")[0] for message in told] == [f"{long[0]}:2"]


PROSE = "".join(f"line {n} of a text in which each one says {n * 7919}\n" for n in range(90))


def text(path: Path, **options) -> TextFiles:
    path.write_text(PROSE)
    options = {"vocab_size": 256, "window": 8, "batch_size": 2, "eval_streams": 2} | options
    return made(TextFiles(path, **options))


def test_a_fold_of_a_text_is_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LEYDEN_DATA", str(tmp_path))
    whole = text(tmp_path / "prose", test_size=0.1)._splits
    before = bytes(whole["train"].ids) + bytes(whole["val"].ids)
    validated = b""
    for k in range(4):
        splits = {n: bytes(part.ids) for n, part in text(tmp_path / "prose", folds=4, fold=k)._splits.items()}
        assert splits["test"] == bytes(whole["test"].ids)
        assert splits["train"] == before.replace(splits["val"], b"")
        validated += splits["val"]
    assert validated == before


def test_a_tokenizer_knows_the_training_part_of_a_fold_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LEYDEN_DATA", str(tmp_path))
    pytest.importorskip("tokenizers")
    vocabularies = [
        text(tmp_path / "prose", folds=3, fold=k, tokenizer="bpe", vocab_size=300).tokenizer.pieces for k in range(3)
    ]
    assert vocabularies[0] != vocabularies[1] != vocabularies[2]
    size = len({*PROSE.replace("0", "")})
    monkeypatch.setattr("test_folds.PROSE", PROSE.replace("0", "") + "0")
    with pytest.raises(
        UserError, match=rf"vocab_size={size}, or for every fold data\.tokenizer=byte data\.vocab_size=256$"
    ):
        text(tmp_path / "prose", folds=2, fold=1, test_size=0.0, tokenizer="char", vocab_size=size + 1)


# Configuration


@pytest.mark.parametrize("choice", [path.stem for path in choices(CONF / "data") if path.stem != "none"])
def test_every_choice_has_folds(choice):
    node = OmegaConf.merge(*map(OmegaConf.load, reversed([*with_bases(Path(f"data/{choice}.yaml"), [CONF])])))
    assert [node.folds, node.fold] == [None, None]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.folds=5"], "data.folds=5 needs one of them: set data.fold=0 to 4 too (from data.folds=5)"),
        (["data.fold=1"], "data.fold=1 needs the number of folds: set data.folds too (from data.fold=1)"),
        (
            ["data.folds=5", "data.fold=5"],
            "data.fold=5 is not one of data.folds=5: they count from 0 to 4 (from data.fold=5)",
        ),
        (["data.folds=1", "data.fold=0"], "data.folds=1: should be greater than or equal to 2"),
        (["data.folds=5", "data.fold=-1"], "data.fold=-1: should be greater than or equal to 0"),
        (["data.folds=5", "data.fold=b"], "data.fold=b: should be a valid integer"),
        (["data.folds=150", "data.fold=0"], "data.folds=150 is more than the 139 examples of the class 8"),
    ],
)
def test_folds_that_cannot_be_are_one_clear_line(workdir: Path, capfd: pytest.CaptureFixture, overrides, message):
    assert cli("train", "experiment=cnn_digits", *overrides) == 2
    error = capfd.readouterr().err
    assert re.search(re.escape(message), error)
    assert error.count("\n") == 1


def test_data_without_folds_says_so(workdir: Path, capfd: pytest.CaptureFixture):
    (workdir / "mine.py").write_text(
        "from lightning import LightningDataModule\n\n\nclass Mine(LightningDataModule):\n"
        "    def __init__(self, num_classes: int = 10, image_shape: tuple = (1, 8, 8)) -> None: ...\n"
    )
    (workdir / "conf/data").mkdir(parents=True)
    (workdir / "conf/project.yaml").write_text("targets: [mine]\n")
    (workdir / "conf/data/mine.yaml").write_text("_target_: mine.Mine\nnum_classes: 10\nimage_shape: [1, 8, 8]\n")
    for folds in ("data.folds=5", "++data.folds=5"):
        assert cli("train", "model=convnet", "data=mine", folds) == 2
        assert "data.folds: " in capfd.readouterr().err


def test_a_run_is_not_resumed_with_another_fold(workdir: Path, capfd: pytest.CaptureFixture):
    folds = ["data.folds=5", "data.fold=1"]
    train = ["train", "experiment=cnn_digits", "trainer.max_epochs=1", *folds]
    forked(lambda: (at_step(9, lambda: os.kill(os.getpid(), signal.SIGKILL)), main(train)))
    [run] = list_runs()
    assert {name: part["size"] for name, part in run.manifest["data"].items()} == {
        "train": 1150,
        "val": 288,
        "test": 359,
    }
    frozen = run.path / "config.yaml"
    frozen.write_text(frozen.read_text().replace("fold: 1", "fold: 2"))
    assert cli("resume", "last") == 2
    assert "the train and val data is not what" in capfd.readouterr().err
