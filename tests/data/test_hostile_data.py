"""Damaged or malicious data files start no program, take no more memory than they should, and are refused by name."""

import gzip
import os
import re
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

import leyden
from leyden.comparison import answers
from leyden.data import download
from leyden.data.download import Remote
from leyden.data.sequences.sequences import TsFiles
from leyden.errors import UserError
from leyden.loggers import films
from leyden.preparation.clocked_table import read_table
from leyden.preparation.lines import read_lines
from leyden.preparation.pictures import open_array, read_picture
from support.schemas import read
from support.series import apart, needs_polars


def png(width: int, height: int) -> bytes:
    """A PNG file that says it has this size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 9)) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(canary) (w) file closefile\nshowpage\n%%EOF\n"
PICTURES = {
    "an EPS file": (EPS, "is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"),
    "a font": (b"\x00\x01\x00\x00" + bytes(100), "is none of"),
    "nothing": (b"", "is none of"),
    "a bomb": (png(20_000, 20_000), "is too large: 400,000,000 pixels; leyden reads up to 100,000,000 pixels"),
    "a small bomb": (png(12_000, 10_000), "is too large: 12000 x 10000 pixels, 120,000,000; leyden reads up to"),
    "a cut one": (png(8, 8), "is not a picture that can be read"),
}


@pytest.fixture
def ghostscript(tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `gs` on the search path that leaves a file."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {canary}/gs\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # or it remembers that there was none


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_that_is_none_is_named_and_starts_nothing(
    workdir: Path, canary: Path, ghostscript: None, capfd: pytest.CaptureFixture, kind: str
):
    content, said = PICTURES[kind]
    (workdir / "x.png").write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape('x.png')} .*{re.escape(said)}") as caught:
        read_picture(Path("x.png"), (3, 8, 8))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^x\.png "):
        films._with_256_colors(Path("x.png"))
    assert list(canary.iterdir()) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tiff", "webp"])
def test_pictures_of_each_format_are_read(workdir: Path, suffix: str):
    path = workdir / f"x.{suffix}"
    Image.new("RGB", (8, 8), (250, 10, 10)).save(path)
    assert read_picture(path, (3, 8, 8))[0][0].mean() > 240


def test_pictures_are_opened_in_one_place():
    """Pillow's own `open` takes every format that it knows."""
    source = Path(leyden.__file__).parent
    users = [path.name for path in source.rglob("*.py") if re.search(r"\bImage\.open\(", path.read_text())]
    assert users == ["image_files.py"]


def npy(header: dict, content: bytes) -> bytes:
    text = repr(header).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def packed(folder: Path) -> bytes:
    np.savez_compressed(folder / "x.npz", a=np.zeros(1 << 20, np.uint8))
    return (folder / "x.npz").read_bytes()


def test_an_array_takes_no_more_than_its_file_holds(workdir: Path):
    huge = {"descr": "|u1", "fortran_order": False, "shape": (40_000_000_000, 1, 8, 8)}
    wrong = {
        "huge": npy(huge, bytes(64)),
        "negative": npy(huge | {"shape": (-1, 1, 8, 8)}, bytes(64)),
        "pickle": npy(huge | {"descr": "|O", "shape": (1,)}, b"cos\nsystem\n(S'true'\ntR."),
        "packed": packed(workdir),
        "text": b"no array",
        "header": b"\x93NUMPY\x01\x00\x09\x00" + b"(" * 9,
    }
    for name, content in wrong.items():
        path = workdir / f"{name}.npy"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.npy is not an array that can be read") as caught:
            open_array(path)
        assert "\n" not in str(caught.value)


def test_answers_that_are_packed_are_refused(workdir: Path):
    (workdir / "predictions.npz").write_bytes(packed(workdir))
    with pytest.raises(UserError, match=r"predictions\.npz cannot be read: its arrays are compressed"):
        answers._read_answers(workdir / "predictions.npz", "a")


@pytest.mark.slow
def test_one_long_series_does_not_pad_the_others(workdir: Path):
    """Padded to the longest, these 2 MB were 144 GB."""
    short, long = 40_000, 900_000
    lines = ["@classLabel true a b", "@data", *["1:a"] * short, "0," * (long - 1) + "1:b", *["1:b"] * 9]
    (workdir / "x.ts").write_text("\n".join(lines))
    data = TsFiles(train=workdir / "x.ts", num_classes=2, num_features=1)
    data.setup()
    assert len(next(iter(data.train_dataloader())).label) == 32
    seen = [len(names) for names, _ in read(data, [workdir / "x.ts"], 32)]
    assert (sum(seen), max(seen)) == (short + 10, 32)


@needs_polars
def test_a_table_unpacks_to_no_more_than_its_file_could_hold(workdir: Path):
    apart(read_a_packed_table, workdir)


def read_a_packed_table(workdir: Path) -> None:
    import polars

    rows = 20_000_000
    polars.select(t=polars.int_range(rows), x=polars.zeros(rows)).write_parquet(workdir / "x.parquet")
    size = (workdir / "x.parquet").stat().st_size
    if 2 * rows <= 100 * size:
        polars.select(x=polars.zeros(rows)).write_parquet(workdir / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet unpacks to [\d,]+ values, more than 100 for each of its"):
        read_table(workdir / "x.parquet", "t", ["x"])


def test_text_unpacks_to_no_more_than_its_file_could_hold(workdir: Path):
    (workdir / "x.gz").write_bytes(gzip.compress(bytes(20_000_000)))
    with pytest.raises(UserError, match=r"x\.gz cannot be read: it unpacks to more than [\d,]+ bytes"):
        read_lines(workdir / "x.gz")


def test_a_download_is_not_unpacked_without_end(workdir: Path):
    (workdir / "x.gz").write_bytes(gzip.compress(bytes(100_000_000)))
    remote = Remote("x.gz", "sha256:0", ((workdir / "x.gz").as_uri(),), unpacked=True)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"unpacks to more than 67,108,864 bytes.*put the file by hand at new\.gz"):
        download.download(remote, Path("new.gz"))
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert not list(workdir.glob("new.gz*.part"))


def test_a_mirror_that_sends_too_much_is_left(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "MAX_DOWNLOAD", 1000)
    (workdir / "x").write_bytes(bytes(2000))
    remote = Remote("x", "sha256:0", ((workdir / "x").as_uri(),))
    with pytest.raises(UserError, match=r"it would send 2\.0 kB; the limit is 1\.0 kB"):
        download.download(remote, workdir / "new")
    assert not (workdir / "new.part").exists()
