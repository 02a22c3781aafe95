"""Promises of the text data: what is encoded is decoded, batches are pure functions, every target counts once."""

import functools
import hashlib
import io
import json
import os
import random
import shutil
import sys
import zipfile
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from leyden.batch import NO_TARGET, TextBatch
from leyden.config.instantiate import instantiate
from leyden.config.locations import CONF
from leyden.data.download import Remote, data_root
from leyden.data.text import corpora, tokenizers
from leyden.data.text.loader import StreamLoader, TextEvalLoader, WindowLoader
from leyden.data.text.text import Text, cut_end
from leyden.data.text.text_files import PyDocs, TextFiles
from leyden.data.text.token_files import Tokens
from leyden.data.text.tokenizers import Bytes, Characters, Tokenizer, learn, restore
from leyden.errors import UserError
from support.datasets import SHAKESPEARE, needs
from support.processes import forked

PROSE = "Der alte Mann saß am Ufer, und die Wellen kamen — wie immer — näher.\nEr las: 日本語!\n" * 12
TRAINERS = [StreamLoader, WindowLoader]


@pytest.fixture(autouse=True)
def own_token_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEYDEN_DATA", str(tmp_path / "data"))


def numbered(size: int) -> Tokens:
    """Tokens that say where they stand."""
    return Tokens(np.arange(size, dtype=np.int32), 1.0, "")


def equal(a: TextBatch, b: TextBatch) -> bool:
    return torch.equal(a.token, b.token) and torch.equal(a.target, b.target) and a[2:] == b[2:]


def joined(parts: list[TextBatch]) -> TextBatch:
    rows = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    assert len({part[2:] for part in parts}) == 1
    return TextBatch(*rows, *parts[0][2:])


# Tokenizers


def has_library() -> None:
    pytest.importorskip("tokenizers")


@pytest.fixture(params=["byte", "char", "bpe", "word"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param in ("bpe", "word"):
        has_library()
    return learn(request.param, PROSE, vocab_size=300)


def test_decoding_gives_back_what_was_encoded(tokenizer: Tokenizer):
    ids = tokenizer.encode(PROSE)
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size
    decoded = tokenizer.decode(ids)
    if tokenizer.state_dict()["kind"] == "word":
        decoded = decoded.replace(" \n", "\n")  # a word ends with a space
    assert decoded == PROSE


def test_a_tokenizer_comes_back_from_plain_data(tokenizer: Tokenizer):
    state = json.loads(json.dumps(tokenizer.state_dict()))
    assert np.array_equal(restore(state).encode(PROSE), tokenizer.encode(PROSE))
    assert restore(state).pieces == tokenizer.pieces


@settings(max_examples=60, deadline=None)
@given(st.text(), st.randoms())
def test_a_stream_of_tokens_is_the_text_and_never_half_a_character(text: str, rng: random.Random):
    for tokenizer in (Bytes(), Characters(text + "a")):
        ids = tokenizer.encode(text).tolist()
        stream = tokenizer.stream()
        shown = [stream.push(token) for token in ids]
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in shown)
        assert "".join(shown) + stream.end() == text
    noise = [rng.randrange(256) for _ in range(20)]  # what a model may write: bytes that are no UTF-8
    stream = Bytes().stream()
    assert "".join(map(stream.push, noise)) + stream.end() == Bytes().decode(noise)


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_byte_pairs_leave_nothing_unknown(text: str):
    has_library()
    bpe = learn("bpe", PROSE, vocab_size=280)
    ids = bpe.encode(text).tolist()
    stream = bpe.stream()
    assert bpe.decode(ids) == text == "".join(map(stream.push, ids)) + stream.end()


def test_words_are_split_at_spaces_and_the_rare_are_unknown():
    has_library()
    words = learn("word", "The cat  saw\tthe dog\nthe cat saw <unk>\n", vocab_size=100, lowercase=True, min_frequency=2)
    assert sorted(words.pieces) == [b"\n", b"<unk> ", b"cat ", b"saw ", b"the "]
    assert words.decode(words.encode("THE bird saw\n")) == "the <unk> saw \n"


def test_characters_are_those_of_the_training_text_in_order():
    characters = learn("char", "hello\n", vocab_size=5)
    assert characters.pieces == [b"\n", b"e", b"h", b"l", b"o"]
    with pytest.raises(UserError, match=r"2 characters outside the vocabulary: 'Z', 'é'; it holds '\\nehlo'"):
        characters.encode("hé, Zoé".replace(", ", "l"))


@pytest.mark.parametrize(("text", "start"), [("a\nb ", "\n"), ("a b", " "), ("ab", "a")])
def test_an_empty_prompt_begins_a_line_or_a_word(text: str, start: str):
    assert Characters(text).decode(Characters(text).prompt("")) == start


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'leyden\[text\]'$"):
        learn("bpe", PROSE, vocab_size=300)


# Loading


@pytest.mark.parametrize("loader", TRAINERS)
@settings(max_examples=40, deadline=None)
@given(size=st.integers(40, 300), window=st.integers(1, 7), batch_size=st.integers(1, 4), epoch=st.integers(0, 5))
def test_a_target_is_the_next_token_and_none_comes_twice(loader, size, window, batch_size, epoch):
    batches = loader(numbered(size), window=window, batch_size=batch_size, seed=1)
    drawn = [batches.batch(epoch, index) for index in range(len(batches))]
    assert all(batch.token.shape == (batch_size, window) for batch in drawn)
    assert all(torch.equal(batch.target, batch.token + 1) for batch in drawn)
    targets = torch.cat([batch.target.flatten() for batch in drawn])
    assert len(targets.unique()) == len(targets) > size - 1 - (batch_size + 1) * window
    assert targets.max() < size


def test_streams_go_on_where_they_ended():
    batches = StreamLoader(numbered(500), window=7, batch_size=3, seed=1)
    drawn = list(batches)
    assert [batch.carry for batch in drawn] == [False] + [True] * (len(batches) - 1)
    for before, after in pairwise(drawn):
        assert torch.equal(after.token[:, 0], before.target[:, -1])


@pytest.mark.parametrize("loader", TRAINERS)
def test_every_epoch_has_other_windows_and_every_target_has_its_turn(loader):
    batches = loader(numbered(100), window=8, batch_size=3, seed=1)
    begins = {int(batches.batch(epoch, 0).token[0, 0]) % 8 for epoch in range(300)}
    assert begins == set(range(8))
    seen = {
        t
        for epoch in range(300)
        for i in range(len(batches))
        for t in batches.batch(epoch, i).target.flatten().tolist()
    }
    assert seen == set(range(1, 100))
    assert not equal(batches.batch(0, 0), loader(numbered(100), window=8, batch_size=3, seed=2).batch(0, 0))


@pytest.mark.parametrize("loader", TRAINERS)
def test_an_epoch_can_be_entered_anywhere(loader):
    options = {"window": 5, "batch_size": 4, "seed": 3}
    batches = loader(numbered(300), **options)
    epochs = [list(batches) for _ in range(3)]
    again = loader(numbered(300), **options)
    again.seek(2, 1)
    assert all(map(equal, again, epochs[2][1:]))
    assert not equal(epochs[1][0], epochs[2][0])


@pytest.mark.parametrize("loader", TRAINERS)
def test_ranks_together_hold_the_batch_of_one(loader):
    options = {"window": 5, "batch_size": 4, "seed": 3}
    alone = loader(numbered(300), **options)
    shares = [loader(numbered(300), **options, rank=rank, world_size=2) for rank in range(2)]
    for index in range(len(alone)):
        assert equal(joined([share.batch(1, index) for share in shares]), alone.batch(1, index))
    with pytest.raises(UserError, match=r"data.batch_size=5 does not divide by the 2 ranks"):
        loader(numbered(300), window=5, batch_size=5, world_size=2)


@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(2, 200),
    window=st.integers(1, 30),
    num_streams=st.sampled_from([2, 4, 8, 64]),
    carry=st.booleans(),
    world_size=st.sampled_from([1, 2]),
)
def test_evaluation_counts_every_target_once(size, window, num_streams, carry, world_size):
    ranks = [
        TextEvalLoader(
            numbered(size), window=window, num_streams=num_streams, carry=carry, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    batches = [joined(list(parts)) for parts in zip(*ranks, strict=True)]
    targets, last = [], torch.full((num_streams,), NO_TARGET)
    for index, (token, target, carried, _, targets_per_row) in enumerate(batches):
        valid = target != NO_TARGET
        assert torch.equal(target[valid], token[valid] + 1)
        assert carried == (carry and index > 0)
        if carried:
            goes_on = valid[:, 0]
            assert torch.equal(token[goes_on, 0], last[goes_on])
        last = target[:, -1]
        assert targets_per_row * num_streams == pytest.approx(valid.sum().item())
        targets += target[valid].tolist()
    assert sorted(targets) == list(range(1, size))


@pytest.mark.parametrize("loader", TRAINERS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_other_devices_go_through_torch_and_get_the_same(loader, dtype, monkeypatch: pytest.MonkeyPatch):
    """A device that is not called cpu: tensors instead of the memory map."""
    tokens = Tokens(np.random.default_rng(0).integers(250, size=300).astype(dtype), 1.0, "")
    ours = loader(tokens, window=7, batch_size=4)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_: self)
    theirs = loader(tokens, window=7, batch_size=4, device=torch.device("cuda"))
    assert isinstance(theirs._windows, torch.Tensor)
    assert all(map(equal, ours, theirs))


# Token files


def files(path: Path, **options) -> TextFiles:
    options = {"vocab_size": 256, "window": 8, "batch_size": 2, "eval_streams": 2} | options
    return TextFiles(path=path, **options)


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(PROSE, encoding="utf-8")
    return path


def test_a_text_is_tokenised_once_and_mapped(prose: Path, monkeypatch: pytest.MonkeyPatch):
    data = files(prose)
    data.setup()
    prints = data.fingerprint()
    assert isinstance(data._splits["train"].ids, np.memmap)
    assert [data._splits[name].ids.dtype for name in ("train", "val", "test")] == [np.uint8] * 3
    parts = cut_end(PROSE, 0.1, 0.1)
    assert {name: print_["sha256"] for name, print_ in prints.items()} == {
        name: hashlib.sha256(text.encode()).hexdigest() for name, text in parts.items()
    }
    folder = next((data_root() / "tokens").glob("*/facts.json")).parent
    shutil.rmtree(folder)
    folder.with_name(f".{folder.name}.{os.getpid()}.tmp").mkdir()  # left by a killed process of this number
    files(prose).setup()
    monkeypatch.setattr(TextFiles, "read", lambda self: pytest.fail("the text is read again"))
    again = files(prose)
    again.setup()
    assert again.fingerprint() == prints
    assert len(list((data_root() / "tokens").glob("*/facts.json"))) == 1


def test_another_text_or_another_split_or_tokenizer_has_other_files(prose: Path):
    count = len({*PROSE})
    for options in ({}, {"test_size": 0.0}, {"tokenizer": "char", "vocab_size": count}, {"lowercase": True}):
        files(prose, **options).setup()
    prose.write_text(PROSE + "!")
    files(prose).setup()
    assert len(list((data_root() / "tokens").glob("*/facts.json"))) == 5


def test_a_vocabulary_of_another_size_is_refused_with_tokens_at_hand_too(prose: Path):
    data = files(prose)
    data.setup()
    again, other = files(prose, lowercase=True), files(prose, vocab_size=100)
    for one in (again, other):
        one.load_state_dict(data.state_dict())
    again.setup()  # tokens by the checkpoint's tokenizer
    with pytest.raises(UserError, match=r"data.vocab_size is 100, .* write data.vocab_size=256"):
        other.setup()


def test_processes_that_start_together_make_one(prose: Path):
    """Both are held until both want the files."""

    def both() -> int:
        started = data_root() / "started"
        if child := os.fork():
            try:
                files(prose).setup()
            finally:
                _, status = os.waitpid(child, 0)
            made = (data_root() / "made").read_text()
            return 0 if status == 0 and made == "x" else 1
        files(prose).setup()
        assert not started.exists()
        os._exit(0)

    read = TextFiles.read

    def slow(self: TextFiles) -> dict:
        import time

        with (data_root() / "made").open("a") as file:
            file.write("x")
        time.sleep(0.3)
        return read(self)

    TextFiles.read = slow
    try:
        assert forked(both) == 0
    finally:
        TextFiles.read = read


@pytest.mark.parametrize(("kind", "size"), [("byte", 256), ("char", len({*PROSE})), ("word", 18), ("bpe", 270)])
def test_the_tokenizer_travels_in_the_checkpoint(prose: Path, tmp_path: Path, kind: str, size: int):
    if kind in ("word", "bpe"):
        has_library()
    data = files(prose, tokenizer=kind, vocab_size=size)
    data.setup()
    torch.save(data.state_dict(), tmp_path / "state.pt")
    other = files(tmp_path / "gone.txt", tokenizer=kind, vocab_size=size)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert np.array_equal(other.tokenizer.encode(PROSE), data.tokenizer.encode(PROSE))


def test_a_loaded_tokenizer_reads_another_text(prose: Path, tmp_path: Path):
    """`leyden evaluate RUN data.path=…`: the run's own ids, not those that the other text would have."""
    data, other = (
        files(p, tokenizer="char", vocab_size=size)
        for p, size in ((prose, len({*PROSE})), (tmp_path / "b.txt", len({*PROSE})))
    )
    data.setup()
    (tmp_path / "b.txt").write_text("Mann am Ufer. " * 20)
    with pytest.raises(UserError, match=r"data.vocab_size is \d+, but data.tokenizer=char makes 10 tokens"):
        files(tmp_path / "b.txt", tokenizer="char", vocab_size=len({*PROSE})).setup()
    other.load_state_dict(data.state_dict())
    other.setup()
    assert other.tokenizer.decode(other._splits["train"].ids[:12]) == "Mann am Ufer"


def test_characters_per_token_are_exact_over_a_split(prose: Path):
    has_library()
    data = files(prose, tokenizer="bpe", vocab_size=280)
    data.setup()
    [name] = [p for p in (data_root() / "tokens").iterdir() if p.is_dir()]
    facts = json.loads((name / "facts.json").read_text())["splits"]["val"]
    size = len(data._splits["val"].ids)
    assert facts["chars_per_token"] * size == pytest.approx(len(cut_end(PROSE, 0.1, 0.1)["val"]))
    assert {batch.chars_per_target for batch in data.val_dataloader()} == {facts["chars_per_token"]}


def test_a_smaller_limit_trains_on_the_beginning(prose: Path):
    limited, whole = files(prose, limit=10), files(prose)
    for data in (limited, whole):
        data.setup()
    assert len(limited.train_dataloader()) == 5  # 10 windows in batches of 2
    size = len(limited._splits["train"].ids)
    assert np.array_equal(limited._splits["train"].ids, whole._splits["train"].ids[:size])
    assert limited.fingerprint()["val"] == whole.fingerprint()["val"]


def test_a_folder_is_its_text_files_by_path(tmp_path: Path):
    for name, text in {"b/one.txt": "one", "a.txt": "zero", "c.md": "no"}.items():
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(text)
    data = files(tmp_path / "texts", test_size=0.0)
    assert "".join(data.read().values()) == "zero\none"


def test_without_a_test_part_the_test_is_the_validation(prose: Path):
    data = files(prose, test_size=0.0)
    data.setup()
    assert list(data.fingerprint()) == ["train", "val"]
    assert all(map(equal, data.test_dataloader(), data.val_dataloader()))


def test_files_are_loaded_whole_to_be_scored(prose: Path):
    data = files(prose)
    data.setup()
    [(names, batch)] = data.load_files([prose])
    assert names == [str(prose)]
    assert Bytes().decode(batch.token[0].tolist() + batch.target[0, -1:].tolist()) == PROSE
    assert batch.chars_per_target == len(PROSE) / len(PROSE.encode())


# Bad input


def bad(path: Path, content: bytes, **options) -> None:
    path.write_bytes(content)
    data = files(path, **options)
    data.setup()
    data.train_dataloader()
    data.val_dataloader()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "is empty"),
        (b" \n" * 100, {}, "is empty"),
        (b"abc\xff" * 100, {}, r"bad.txt is not UTF-8: byte 3 is 0xff"),
        (
            b"a word or two " * 6,
            {"window": 100},
            r"batch_size=2 rows of data.window=100 need 300 tokens, but there are 67",
        ),
        (b"a word or two " * 6, {"limit": 99}, r"data.limit=99 is larger than the 7 windows"),
        (b"a word or two " * 6 + b"x" * 12, {"tokenizer": "char", "vocab_size": 7}, r"1 characters outside .* 'x'"),
        (b"a word or two " * 6, {"vocab_size": 65}, r"data.vocab_size is 65, .* write data.vocab_size=256"),
        (b"a word or two " * 6, {"val_size": 0.5, "test_size": 0.5}, r"leave nothing to train on"),
        (b"a word or two " * 6, {"min_frequency": 2}, r"min_frequency=2 is for words and byte pairs"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, content: bytes, options: dict, message: str):
    with pytest.raises(UserError, match=message) as error:
        bad(tmp_path / "bad.txt", content, **options)
    assert "\n" not in str(error.value)


def test_too_few_words_say_what_to_write(prose: Path):
    has_library()
    with pytest.raises(UserError, match=r"data.vocab_size is 5000, .* write data.vocab_size=19"):
        files(prose, tokenizer="word", vocab_size=5000).setup()
    with pytest.raises(UserError, match=r"data.vocab_size=100 with data.tokenizer=bpe: the bytes alone are 256"):
        files(prose, tokenizer="bpe", vocab_size=100).setup()


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"data.path=.*nowhere does not exist"):
        files(tmp_path / "nowhere").setup()
    with pytest.raises(UserError, match=r"holds no .txt file"):
        files(tmp_path).setup()


# Corpora


TEXTS = ["alpha beta <unk> gamma\n" * 30, "beta alpha\n" * 9, "gamma beta\n" * 8]


def zipped(contents: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return file.getvalue()


def corpus(monkeypatch: pytest.MonkeyPatch, kind: type[corpora.Corpus], contents: list[bytes], **options) -> Text:
    """A corpus whose files lie in the data folder, small ones with digests of their own."""
    remotes = []
    for remote, content in zip(kind.remotes, contents, strict=True):
        path = data_root() / kind.folder / remote.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        remotes.append(Remote(remote.name, f"sha256:{hashlib.sha256(content).hexdigest()}", ()))
    monkeypatch.setattr(kind, "remotes", tuple(remotes))
    data = kind(**{"vocab_size": 256, "window": 4, "batch_size": 2, "eval_streams": 2} | options)
    data.prepare_data()
    data.setup()
    return data


def decoded(data: Text) -> list[str]:
    return [data.tokenizer.decode(data._splits[part].ids) for part in ("train", "val", "test")]


@pytest.mark.parametrize("kind", [corpora.WikiText2, corpora.WikiText103])
def test_wikitext_is_read_inside_its_archive(monkeypatch: pytest.MonkeyPatch, kind: type[corpora.Corpus]):
    has_library()
    names = [f"wikitext-2/wiki.{part}.tokens" for part in ("train", "valid", "test")]
    data = corpus(monkeypatch, kind, [zipped(dict(zip(names, TEXTS, strict=True)))], tokenizer="word", vocab_size=5)
    assert [text.replace(" \n", "\n") for text in decoded(data)] == TEXTS


def test_ptb_has_a_file_for_each_part(monkeypatch: pytest.MonkeyPatch):
    data = corpus(monkeypatch, corpora.PTB, [text.encode() for text in TEXTS])
    assert decoded(data) == TEXTS


def test_enwik8_is_cut_through_characters_too(monkeypatch: pytest.MonkeyPatch):
    content = "é" * 100 + "x"
    data = corpus(monkeypatch, corpora.Enwik8, [zipped({"enwik8": content})])
    parts = [bytes(data._splits[part].ids) for part in ("train", "val", "test")]
    assert b"".join(parts) == content.encode()
    assert [len(part) for part in parts] == [180, 10, 11]


@settings(deadline=None)
@given(st.text(alphabet="ab \n\té", max_size=200), st.integers(2, 30))
def test_a_long_line_is_cut_where_tokens_are(text: str, limit: int):
    has_library()
    bpe = small_bpe()
    with mock.patch.object(tokenizers, "LONG_LINE", limit):
        parts = list(tokenizers._lines(text))
        ids = bpe.encode(text)
    assert "".join(parts) == text
    assert ids.tolist() == bpe.encode(text).tolist()


@functools.cache
def small_bpe() -> Tokenizer:
    return learn("bpe", "ab a  b\tab ba é a ab\n  a b" * 9, 280)


def test_a_local_copy_is_proved_even_when_tokens_are_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    corpus(monkeypatch, corpora.Shakespeare, [PROSE.encode()])
    (tmp_path / "cut.txt").write_text(PROSE[:-9])
    with pytest.raises(UserError, match=r"data.path is no copy of input.txt: .*cut.txt has sha256 .*data=text"):
        corpora.Shakespeare(path=tmp_path / "cut.txt", vocab_size=256).setup()
    assert (tmp_path / "cut.txt").exists()


def test_a_cut_through_a_character_is_no_trouble(monkeypatch: pytest.MonkeyPatch):
    text = "é" * 101  # 202 bytes, cut at 181 and 191
    data = corpus(monkeypatch, corpora.Enwik8, [zipped({"enwik8": text})], tokenizer="char", vocab_size=1)
    assert {character for part in decoded(data) for character in part} == {"é"}


def test_text8_has_letters_and_spaces(monkeypatch: pytest.MonkeyPatch):
    text = "abcdefghijklmnopqrstuvwxyz " * 40
    data = corpus(monkeypatch, corpora.Text8, [zipped({"text8": text})], tokenizer="char", vocab_size=27)
    assert "".join(decoded(data)) == text


def test_a_corpus_is_proved_and_once_tokenised_not_needed(monkeypatch: pytest.MonkeyPatch):
    options = {"tokenizer": "byte", "window": 4, "batch_size": 2}
    text = ("To be, or not to be. " * 20).encode()
    corpus(monkeypatch, corpora.Shakespeare, [text], **options)
    path = data_root() / "shakespeare" / "input.txt"
    path.write_bytes(b"another text")
    with pytest.raises(UserError, match=r"input.txt has sha256 .*: delete it and start again"):
        corpora.Shakespeare(vocab_size=256, lowercase=True, **options).setup()
    path.unlink()
    corpora.Shakespeare(vocab_size=256, **options).setup()
    with pytest.raises(UserError, match=r"input.txt does not exist: call prepare_data"):
        corpora.Shakespeare(vocab_size=256, lowercase=True, **options).setup()


@needs(SHAKESPEARE)
def test_shakespeare_is_split_as_nanogpt_does():
    config = OmegaConf.load(CONF / "data/shakespeare.yaml")
    data = instantiate(
        OmegaConf.to_container(
            OmegaConf.merge({"seed": 0, "data": config}, {"data": {"path": str(SHAKESPEARE)}}), resolve=True
        )["data"],
        "data",
    )
    data.prepare_data()
    data.setup()
    assert [data.fingerprint()[part]["size"] for part in ("train", "val")] == [1_003_854, 111_540]


def test_the_documentation_of_python_needs_no_file():
    config = OmegaConf.to_container(
        OmegaConf.merge({"seed": 0, "data": OmegaConf.load(CONF / "data/pydocs.yaml")}), resolve=True
    )
    data = instantiate(config["data"], "data")
    data.setup()
    sizes = [part["size"] for part in data.fingerprint().values()]
    assert 400_000 < sum(sizes) < 900_000
    assert '"assert"' in tokenizers.Bytes().decode(data._splits["train"].ids[:100])
    assert isinstance(data, PyDocs)
