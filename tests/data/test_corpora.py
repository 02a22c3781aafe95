"""Published texts are read from their archives, proved by their digests, and split as published results have them."""

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from leyden.config.compose import compose
from leyden.config.instantiate import instantiate
from leyden.data.download import Remote, data_root
from leyden.data.text import corpora
from leyden.data.text.text import Text
from leyden.errors import UserError
from support.datasets import SHAKESPEARE, needs
from support.text import PROSE, has_library


@pytest.fixture(autouse=True)
def own_token_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEYDEN_DATA", str(tmp_path / "data"))


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


def test_a_local_copy_is_proved_even_when_tokens_are_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    corpus(monkeypatch, corpora.Shakespeare, [PROSE.encode()])
    (tmp_path / "cut.txt").write_text(PROSE[:-9])
    with pytest.raises(UserError, match=r"data.path is not a copy of input.txt: .*cut.txt has sha256 .*data=text"):
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
    config = compose(["data=shakespeare", f"data.path={SHAKESPEARE}", "model=lstm_lm"]).config
    data = instantiate(config["data"], "data")
    data.prepare_data()
    data.setup()
    assert [data.fingerprint()[part]["size"] for part in ("train", "val")] == [1_003_854, 111_540]
