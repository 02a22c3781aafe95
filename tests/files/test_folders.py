"""A finished folder appears whole or not at all, and each damage to it is named in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from leyden.errors import UserError
from leyden.files.folders import copy_folder, open_folder, verify_folder, write_folder
from leyden.files.formats import Format

KIND = Format("stones", 2, "collect them again")
FILES = {"a.bin": b"basalt" * 100, "deep/b.bin": b"granite"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "stones"
    with write_folder(path, KIND) as temporary:
        (temporary / "deep").mkdir()
        for name, content in FILES.items():
            (temporary / name).write_bytes(content)
        assert not path.exists()
    return path


def test_the_index_names_every_file_with_its_size_and_digest(folder: Path):
    index = json.loads((folder / "index.json").read_text())
    assert (index["format"], index["kind"]) == (2, "stones")
    assert {name: entry["size"] for name, entry in index["files"].items()} == {"a.bin": 600, "deep/b.bin": 7}
    assert open_folder(folder, KIND) == ["a.bin", "deep/b.bin"]
    verify_folder(folder, KIND)


def test_what_fails_while_it_is_written_leaves_nothing(tmp_path: Path):
    def write_half() -> None:
        with write_folder(tmp_path / "half", KIND) as temporary:
            (temporary / "a").write_text("a")
            raise RuntimeError("the quarry is closed")

    with pytest.raises(RuntimeError, match="quarry"):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(folder: Path):
    with pytest.raises(UserError, match="stones exists already: remove it"), write_folder(folder, KIND):
        pytest.fail("it was opened")
    verify_folder(folder, KIND)


def test_a_copy_is_whole(folder: Path, tmp_path: Path):
    copy_folder(folder, tmp_path / "far/copy", KIND)
    verify_folder(tmp_path / "far/copy", KIND)
    assert {name: (tmp_path / "far/copy" / name).read_bytes() for name in FILES} == FILES


def change_index(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda path: (path / "a.bin").write_bytes(b"c" + FILES["a.bin"][1:]), r"a\.bin has changed"),
    "a lost end": (lambda path: os.truncate(path / "a.bin", 599), r"a\.bin has 599 bytes, not 600"),
    "a lost file": (lambda path: (path / "deep/b.bin").unlink(), r"deep/b\.bin is missing"),
    "a lost index": (lambda path: (path / "index.json").unlink(), r"index\.json is missing"),
    "half an index": (lambda path: os.truncate(path / "index.json", 30), r"index\.json is not JSON"),
    "a list": (lambda path: (path / "index.json").write_text("[]"), "the whole file is missing or wrong"),
    "no files": (change_index(lambda index: index.pop("files")), "files is missing or wrong"),
    "a negative size": (
        change_index(lambda index: index["files"]["a.bin"].update(size=-1)),
        r"a\.bin\.size is missing",
    ),
    "another's file": (
        change_index(lambda index: index["files"].update({"../x": {"size": 0, "sha256": ""}})),
        r"\.\./x, which its index\.json names, lies outside of it",
    ),
    "a newer format": (change_index(lambda index: index.update(format=3)), "format 3, but .* reads format 2: update"),
    "an older format": (
        change_index(lambda index: index.update(format=1)),
        "format 1, .* format 2: collect them again",
    ),
    "no format": (change_index(lambda index: index.pop("format")), "has no format number, .*: collect them again"),
    "another kind": (change_index(lambda index: index.update(kind="pearls")), "holds pearls, not stones"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_damage_is_named_in_a_line_and_is_not_copied(folder: Path, tmp_path: Path, kind: str):
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        verify_folder(folder, KIND)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message) as copied:
        copy_folder(folder, tmp_path / "copy", KIND)
    assert str(copied.value) == str(caught.value)
    assert list(tmp_path.iterdir()) == [folder]
