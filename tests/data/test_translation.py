"""Sentence pairs are read, encoded and batched by length; each is evaluated once; checkpoints hold the vocabularies."""

import gzip
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.data import download
from leyden.data.download import Remote
from leyden.data.text import multi30k
from leyden.data.text.multi30k import Multi30k, remote
from leyden.data.text.pair_loader import plan_batches
from leyden.errors import UserError
from leyden.preparation.subwords import BEGIN, END, PAD, Subwords
from support.datasets import MULTI30K, needs
from support.schemas import read
from support.translation import SENTENCES, VOCAB, corpus, pairs_data, write


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_any_text_comes_back_from_its_ids(texts):
    vocabulary = learned()
    rows = [[*ids, END, PAD] for ids in vocabulary.encode(texts)]
    back = [vocabulary.decode([row])[0] for row in rows]
    assert back == [unicodedata.normalize("NFC", text).removeprefix(" ") for text in texts]
    assert all(min(row[:-2], default=4) >= 4 for row in rows)  # no text makes a special token, not even "<end>"


def learned(lowercase: bool = False) -> Subwords:
    return Subwords.learn(SENTENCES, VOCAB, lowercase=lowercase)


def test_subwords_are_as_many_as_asked_for_and_lower_case_by_choice():
    vocabulary = learned(lowercase=True)
    assert len(vocabulary) == VOCAB
    ids = vocabulary.encode(["A RED ball"])
    assert vocabulary.decode(ids) == ["a red ball"]
    assert "".join(vocabulary.pieces(ids[0])) == "▁a▁red▁ball"
    other = Subwords.restore(vocabulary.state_dict())
    assert other.encode(SENTENCES) == vocabulary.encode(SENTENCES)


def test_an_epoch_is_a_function_of_seed_and_epoch_and_wastes_little():
    rng = np.random.default_rng(0)
    source, target = rng.integers(2, 40, (2, 5003))
    batches = plan_batches(source, target, 16, 1, 2)
    assert np.array_equal(batches, plan_batches(source, target, 16, 1, 2))
    assert not np.array_equal(batches, plan_batches(source, target, 16, 1, 3))
    assert batches.shape == (312, 16)
    assert len(np.unique(batches)) == batches.size
    padded = (target[batches].max(1) * 16).sum() / target[batches].sum()
    assert padded < 1.05
    assert (np.diff(target[batches].max(1)) < 0).any()  # the batches themselves are shuffled


def test_the_ranks_share_a_batch_and_evaluation_sees_each_pair_once(tmp_path):
    module = pairs_data(corpus(tmp_path))
    module.setup()
    whole = module.train_dataloader().batch(1, 3)
    shares = []
    for rank in range(2):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        module.trainer = SimpleNamespace(strategy=strategy, global_rank=rank, world_size=2)
        shares.append(module.train_dataloader().batch(1, 3))
        assert sum(len(batch.source) for batch in module.val_dataloader()) == 8
    decode = module.vocabularies[0].decode
    sources = [decode(share.source.tolist()) for share in shares]
    assert sorted(decode(whole.source.tolist())) == sorted(sources[0] + sources[1])
    module.trainer = None
    seen = [text for batch in module.val_dataloader() for text in decode(batch.source.tolist())]
    assert sorted(seen) == sorted(module._splits["val"].source)


def test_a_batch_holds_sentences_as_batch_types_say(tmp_path):
    module = pairs_data(corpus(tmp_path))
    module.setup()
    batch = module.train_dataloader().batch(0, 0)
    for ids, length in ((batch.source, batch.source_length), (batch.target, batch.target_length)):
        assert ids.dtype == length.dtype == torch.int64
        assert ids.shape[1] == length.max()
        assert ((ids != PAD).sum(1) == length).all()
        assert (ids[torch.arange(8), length - 1] == END).all()
    assert (batch.target[:, 0] == BEGIN).all()
    there = module.vocabularies[1].decode(batch.target.tolist())
    assert [" ".join(reversed(t.split())).lower() for t in there] == module.vocabularies[0].decode(
        batch.source.tolist()
    )


def test_own_files_with_tabs_are_the_same_as_two_files_packed_or_not(tmp_path):
    a, b = corpus(tmp_path)
    lines = [
        f"{x}\t{y}\tsomebody" for x, y in zip(a.read_text().split("\n"), b.read_text().split("\n"), strict=True) if x
    ]
    tabs = write(tmp_path / "tabs.tsv", lines)
    packed = tmp_path / "text.a.gz"
    packed.write_bytes(gzip.compress(a.read_bytes()))
    prints = []
    for files in ([a, b], tabs, [packed, b]):
        module = pairs_data(files)
        module.setup()
        prints.append(module.fingerprint())
    assert prints[0] == prints[1] == prints[2]
    assert {name: part["size"] for name, part in prints[0].items()} == {"train": 130, "val": 16, "test": 14}


def test_each_bad_file_has_one_clear_line(tmp_path):
    a, b = corpus(tmp_path, 40)
    short = write(tmp_path / "short", b.read_text().split("\n")[:7])
    latin, empty, flat = tmp_path / "latin", tmp_path / "empty", write(tmp_path / "flat", ["no tab here"])
    latin.write_bytes(b"caf\xe9\n")
    empty.write_bytes(b"\n")
    for files, message in (
        ([a, short], f"{a} has 40 lines, but {short} has 7: each line must be the translation of the same line"),
        ([a, latin], f"{latin} is not UTF-8: byte 3 is 0xe9"),
        ([empty, b], f"{empty} is empty"),
        ([a], "data.train names 1 files: name one with tabs, or two with the same lines"),
        (flat, f"{flat}:1 has no tab between a sentence and its translation"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            pairs_data(files).setup()
    broken = tmp_path / "text.gz"
    broken.write_bytes(b"not gzip")
    with pytest.raises(UserError, match=r"text\.gz cannot be read: Not a gzipped file"):
        pairs_data([broken, b]).setup()


def test_each_bad_number_has_one_clear_line(tmp_path):
    files = corpus(tmp_path, 40)
    with pytest.raises(
        UserError, match=r"source_vocab_size is 5000, but the training text .* makes \d+ tokens: set it to"
    ):
        pairs_data(files, source_vocab_size=5000).setup()
    with pytest.raises(UserError, match=r"target_vocab_size=200 is smaller than the 260 that bytes"):
        pairs_data(files, target_vocab_size=200)
    with pytest.raises(UserError, match=r"data\.limit=99 is larger than the 32 training pairs"):
        pairs_data(files, limit=99).setup()
    module = pairs_data(files, batch_size=64)
    module.setup()
    with pytest.raises(UserError, match=r"data\.batch_size=64 is larger than the 32 training pairs"):
        module.train_dataloader()
    with pytest.raises(UserError, match=r"both de: choose two languages"):
        Multi30k("de", "de", source_vocab_size=400, target_vocab_size=400)


def test_long_sentences_are_left_out_of_training_and_named_elsewhere(tmp_path, caplog):
    long = "ab " * 60
    train = write(tmp_path / "train", [*SENTENCES, long])
    test = write(tmp_path / "test", ["a dog", long])
    module = pairs_data([train, train], val=[train, train], test=[test, test], max_length=50, batch_size=6)
    module.setup()
    assert len(module.train_dataloader()) == 1
    assert "1 of 7 training pairs are longer than data.max_length=50 tokens and are left out" in caplog.text
    with pytest.raises(
        UserError, match=rf"{test}:2 is \d+ tokens long, more than data\.max_length=50: set that to \d+"
    ):
        module.test_dataloader()
    with pytest.raises(UserError, match=rf"{test}:2 is \d+ tokens long"):
        list(read(module, [test]))


def test_vocabularies_travel_without_the_corpus(tmp_path):
    whole = pairs_data(corpus(tmp_path))
    whole.setup()
    bare = pairs_data([tmp_path / "gone", tmp_path / "gone"], eval_batch_size=2)
    bare.load_state_dict(whole.state_dict())
    text = write(tmp_path / "x", ["ab cd", "", "ef"])
    (first, batch), (second, _) = read(bare, [text], 2)
    assert [*first, *second] == [f"{text}:1", f"{text}:2", f"{text}:3"]
    assert bare.vocabularies[0].decode(batch.source.tolist()) == ["ab cd", ""]
    assert batch.source_length.tolist() == [len(whole.vocabularies[0].encode(["ab cd"])[0]) + 1, 1]
    other = pairs_data(write(tmp_path / "other", ["xyz xyz xyz\tuvw uvw uvw"] * 40), source_vocab_size=VOCAB)
    other.load_state_dict(whole.state_dict())
    other.setup()  # what a checkpoint brought is not learned anew
    assert other.state_dict() == whole.state_dict()


def test_multi30k_downloads_what_is_missing_and_proves_it(tmp_path, monkeypatch):
    module = Multi30k(source_vocab_size=400, target_vocab_size=400, data_dir=tmp_path)
    with pytest.raises(UserError, match=r"train\.de\.gz does not exist: call prepare_data"):
        module.setup()
    asked = []

    def fetch(file: Remote, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(b"ein Hund\n"))
        asked.append(file.urls[0])

    monkeypatch.setattr(download, "download", fetch)
    module.prepare_data()
    names = [f"{part}.{language}.gz" for part in ("train", "val", "test_2016_flickr") for language in ("de", "en")]
    assert asked == [f"{multi30k.MULTI30K}/{name}" for name in names]
    module.prepare_data()
    assert len(asked) == 6
    with pytest.raises(UserError, match=r"train\.de\.gz has sha256 \w+, not 2c2b73fd"):
        module.setup()


@needs(MULTI30K)
def test_multi30k_is_whole():
    module = Multi30k(source_vocab_size=400, target_vocab_size=400, lowercase=True, data_dir=MULTI30K.parent)
    splits = module.read()
    assert {name: len(part.source) for name, part in splits.items()} == {"train": 29000, "val": 1014, "test": 1000}
    assert splits["test"].target[0] == "A man in an orange hat starring at something."
    assert remote("val", "fr").unpacked
