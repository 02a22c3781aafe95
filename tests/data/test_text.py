"""A text is tokenised once and mapped from files; the checkpoint holds its tokenizer; unusable files are named."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from leyden.config.compose import compose
from leyden.config.instantiate import instantiate
from leyden.data.download import data_root
from leyden.data.text.text import cut_end
from leyden.data.text.text_files import PyDocs, TextFiles
from leyden.errors import UserError
from leyden.preparation import tokenizers
from leyden.preparation.tokenizers import Bytes
from support.processes import forked
from support.schemas import read
from support.text import PROSE, equal, require_tokenizers


@pytest.fixture(autouse=True)
def own_token_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEYDEN_DATA", str(tmp_path / "data"))


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
        require_tokenizers()
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
    require_tokenizers()
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
    [(names, batch)] = read(data, [prose])
    assert names == [str(prose)]
    assert Bytes().decode(batch.token[0].tolist() + batch.target[0, -1:].tolist()) == PROSE
    assert batch.chars_per_target == len(PROSE) / len(PROSE.encode())


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
    require_tokenizers()
    with pytest.raises(UserError, match=r"data.vocab_size is 5000, .* write data.vocab_size=19"):
        files(prose, tokenizer="word", vocab_size=5000).setup()
    with pytest.raises(UserError, match=r"data.vocab_size=100 with data.tokenizer=bpe: the bytes alone are 256"):
        files(prose, tokenizer="bpe", vocab_size=100).setup()


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"data.path=.*nowhere does not exist"):
        files(tmp_path / "nowhere").setup()
    with pytest.raises(UserError, match=r"holds no .txt file"):
        files(tmp_path).setup()


def test_the_documentation_of_python_needs_no_file():
    data = instantiate(compose(["data=pydocs", "model=lstm_lm"]).config["data"], "data")
    data.setup()
    sizes = [part["size"] for part in data.fingerprint().values()]
    assert 400_000 < sum(sizes) < 900_000
    assert '"assert"' in tokenizers.Bytes().decode(data._splits["train"].ids[:100])
    assert isinstance(data, PyDocs)
