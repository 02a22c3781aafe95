"""Files, configs, data and folders of others run no code, write nowhere outside the run, and are refused in one line."""

import contextlib
import gzip
import json
import os
import re
import shlex
import sqlite3
import struct
import subprocess
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import EpsImagePlugin, Image

from leyden.cli import main
from leyden.comparison import answers
from leyden.config.check import Composition
from leyden.config.compose import compose, launcher
from leyden.config.instantiate import instantiate
from leyden.config.run_paths import placed
from leyden.data import download
from leyden.data.download import Remote
from leyden.data.lines import read_lines
from leyden.data.pictures import read_array, read_picture
from leyden.data.sequences import TsFiles
from leyden.data.series_file import read_table
from leyden.errors import UserError
from leyden.launch import slurm_script
from leyden.loggers import films
from leyden.loggers.wandb import Wandb
from leyden.nets.timm import Timm
from leyden.run import directory, git, snapshot
from leyden.run.find import list_runs
from leyden.sweep.plan import planned
from support import wandb_server
from support.processes import cli

REQUEST = 2  # the exit code of a wrong request


def refused(capfd: pytest.CaptureFixture, *arguments: str) -> str:
    """Run a command that is a wrong request; return the one line that says so."""
    capfd.readouterr()
    assert main(list(arguments)) == REQUEST
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("leyden: ")


# Git: what a repository's own configuration names


@pytest.fixture
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every program that is started leaves a file."""
    return tmp_path_factory.mktemp("canary")


def in_git(*arguments: str, folder: Path | None = None) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def repository(folder: Path, attributes: str = "") -> None:
    """Make a repository with a commit, and two files that differ from it."""
    folder.mkdir(exist_ok=True)
    (folder / "notes.txt").write_text("one\n")
    (folder / "mine.py").write_text("x = 1\n")
    (folder / ".gitattributes").write_text(attributes)
    in_git("init", "-q", folder=folder)
    in_git("add", ".", folder=folder)
    in_git("commit", "-qm", "first", folder=folder)
    for name in ("notes.txt", "mine.py"):
        (folder / name).write_text((folder / name).read_text() + "2\n")
        os.utime(folder / name, (1e9, 1e9))


def programs(canary: Path) -> dict[str, str]:
    """Every key of a repository's configuration by which git starts a program, with one that leaves a file."""
    names = {
        **{f"filter.{name}.{kind}": "cat" for name in ("evil", "e.vil") for kind in ("clean", "smudge")},
        "filter.process.process": "cat",
        "diff.evil.command": "true",
        "diff.evil.textconv": "cat",
        "diff.external": "true",
        "core.fsmonitor": "true",
        "core.pager": "cat",
        "core.editor": "true",
        "core.sshCommand": "true",
        "gpg.program": "true",
    }
    return {key: f"touch {canary}/{key}; {then}" for key, then in names.items()}


ATTRIBUTES = "*.txt filter=evil diff=evil\nmine.py filter=process diff=evil\n*.md filter=e.vil\n"


def test_git_runs_no_program_that_a_repository_names(workdir: Path, canary: Path):
    repository(workdir, ATTRIBUTES)
    for key, program in programs(canary).items():
        in_git("config", key, program)
    in_git("config", "filter.process.required", "true")
    hook = workdir / "hooks" / "post-index-change"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\ntouch {canary}/hook\n")
    hook.chmod(0o755)
    in_git("config", "core.hooksPath", str(hook.parent))

    subprocess.run(["git", "diff", "HEAD"], capture_output=True)
    assert {"filter.process.process", "core.fsmonitor"} <= {file.name for file in canary.iterdir()}, (
        "these doors are real"
    )
    for file in canary.iterdir():
        file.unlink()

    assert cli("train", "data.limit=64", "model.net.width=2", "trainer.max_epochs=1") == 0
    snapshot.take(workdir, canary.parent / "copy", workdir / "runs", 10)
    assert list(canary.iterdir()) == []
    (trained,) = list_runs()
    assert trained.manifest["git"]["dirty"]
    assert "+2" in (trained.path / "source.diff").read_text()
    assert (canary.parent / "copy" / "mine.py").read_text() == "x = 1\n2\n"


def test_git_starts_no_other_git_in_a_submodule(workdir: Path, canary: Path):
    repository(workdir / "inner")
    repository(workdir / "outer")
    outer = workdir / "outer"
    in_git("submodule", "add", str(workdir / "inner"), "inner", folder=outer)
    in_git("commit", "-qam", "second", folder=outer)
    in_git("config", "diff.submodule", "diff", folder=outer)
    inner = outer / "inner"
    (outer / ".git" / "modules" / "inner" / "info").mkdir(exist_ok=True)
    (outer / ".git" / "modules" / "inner" / "info" / "attributes").write_text("*.txt diff=evil filter=evil\n")
    (inner / "notes.txt").write_text("two\n")
    in_git("commit", "-qam", "in it", folder=inner)
    (inner / "notes.txt").write_text("six\n")
    for key, program in programs(canary).items():
        in_git("config", key, program, folder=inner)
    os.chdir(outer)
    facts, diff = git.state()
    assert facts is not None
    assert b"Subproject commit" in diff
    assert list(canary.iterdir()) == []


@pytest.mark.parametrize("url", ["ext::sh -c touch% {canary}/remote", "/nowhere"])
def test_git_fetches_nothing_for_a_partial_clone(workdir: Path, canary: Path, url: str):
    repository(workdir)
    blob = subprocess.run(["git", "rev-parse", "HEAD:notes.txt"], capture_output=True, text=True).stdout.strip()
    (workdir / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    settings = {
        "extensions.partialClone": "origin",
        "core.repositoryformatversion": "1",
        "remote.origin.url": url.format(canary=canary),
        "remote.origin.promisor": "true",
        "remote.origin.uploadpack": f"touch {canary}/remote; false",
        "protocol.ext.allow": "always",
    }
    for key, value in settings.items():
        in_git("config", key, value)
    assert git.state()[1] == b""
    assert list(canary.iterdir()) == []


def test_the_difference_holds_no_files_from_elsewhere(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    repository(workdir / "project")
    home = workdir / "home"
    home.mkdir()
    (home / "notes.txt").write_text("s3cret\n")
    os.chdir(workdir / "project")
    assert git.state()[1]
    in_git("config", "core.worktree", str(home))
    assert b"s3cret" in subprocess.run(["git", "diff", "HEAD"], capture_output=True).stdout, "this door is real"
    assert git.state()[1] == b""
    in_git("config", "core.worktree", str(workdir / "project"))
    (workdir / "project" / "inner").mkdir()
    os.chdir("inner")
    assert git.state()[1]


def test_a_filter_that_cannot_be_unset_has_no_diff(workdir: Path, canary: Path):
    repository(workdir, "*.txt filter=a=b\n")
    in_git("config", "filter.a=b.clean", f"touch {canary}/clean; cat")
    assert git.diff(20) == b""
    assert list(canary.iterdir()) == []


def test_a_file_that_is_not_utf8_has_a_diff(workdir: Path):
    repository(workdir)
    (workdir / "notes.txt").write_bytes(b"\xe9\n")
    assert b"+\xe9" in git.state()[1]


def test_wandb_runs_no_program_that_a_repository_names(
    server: wandb_server.Server, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
):
    repository(tmp_path, ATTRIBUTES)
    for key, program in programs(canary).items():
        in_git("config", key, program)
    in_git("remote", "add", "origin", "https://me:secret@example.org/mine.git")
    monkeypatch.setenv("WANDB_SAVE_CODE", "true")
    logger = Wandb(run_dir=tmp_path / "runs" / "mine" / "one")
    logger.experiment.finish()
    assert list(canary.iterdir()) == []
    [facts] = (tmp_path / "runs").rglob("wandb-metadata.json")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert json.loads(facts.read_text())["git"] == {"commit": commit, "remote": "https://example.org/mine.git"}


# Pictures and other files of data


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
    "a bomb": (png(20_000, 20_000), "is too large: 400,000,000 pixels, and pictures of up to 100,000,000 pixels"),
    "a small bomb": (png(12_000, 10_000), "is too large: 12000 x 10000 pixels, 120,000,000, and pictures of up to"),
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
        films._of_256_colours(Path("x.png"))
    assert list(canary.iterdir()) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tiff", "webp"])
def test_pictures_of_each_format_are_read(workdir: Path, suffix: str):
    path = workdir / f"x.{suffix}"
    Image.new("RGB", (8, 8), (250, 10, 10)).save(path)
    assert read_picture(path, (3, 8, 8))[0].mean() > 240


def test_pictures_are_opened_in_one_place():
    """Pillow's own `open` takes every format that it knows."""
    source = Path(directory.__file__).parent
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
            read_array(path, (1, 8, 8))
        assert "\n" not in str(caught.value)


def test_answers_that_are_packed_are_refused(workdir: Path):
    (workdir / "predictions.npz").write_bytes(packed(workdir))
    with pytest.raises(UserError, match=r"predictions\.npz cannot be read: its arrays are compressed"):
        answers._read_answers(workdir / "predictions.npz", "a")


def test_one_long_series_does_not_pad_the_others(workdir: Path):
    """Padded to the longest, these 2 MB were 144 GB."""
    short, long = 40_000, 900_000
    lines = ["@classLabel true a b", "@data", *["1:a"] * short, "0," * (long - 1) + "1:b", *["1:b"] * 9]
    (workdir / "x.ts").write_text("\n".join(lines))
    data = TsFiles(train=workdir / "x.ts", num_classes=2, num_features=1)
    data.setup()
    assert len(next(iter(data.train_dataloader())).label) == 32
    seen = [len(names) for names, _ in data.load_files([workdir / "x.ts"])]
    assert (sum(seen), max(seen)) == (short + 10, 32)


def test_a_table_unpacks_to_no_more_than_its_file_could_hold(workdir: Path):
    polars = pytest.importorskip("polars")
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
    monkeypatch.setattr(download, "LARGEST", 1000)
    (workdir / "x").write_bytes(bytes(2000))
    remote = Remote("x", "sha256:0", ((workdir / "x").as_uri(),))
    with pytest.raises(UserError, match=r"it would send 2\.0 kB; the limit is 1\.0 kB"):
        download.download(remote, workdir / "new")
    assert not (workdir / "new.part").exists()


# Configs: what is built, and where it writes

NAMES = [
    "..",
    "/tmp/x",
    "a/..",
    "a/../b",
    ".hidden",
    "-rf",
    "a\\b",
    "a b",
    "x" * 101,
    "last",
    '"a\\nb"',
    '"a\\x1bb"',
]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_has_no_name_that_leads_elsewhere(workdir: Path, capfd: pytest.CaptureFixture, name: str):
    assert refused(capfd, "check", f"name={name}").startswith("name")
    assert refused(capfd, "train", f"name={name}").startswith("name")
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "/tmp", "a/../..", "a/../b"])
def test_a_run_is_made_in_the_runs_folder_whatever_its_name(workdir: Path, name: str):
    with pytest.raises(UserError, match="leads out of the runs folder"):
        directory.Run.create(Composition({}, {"name": name}))
    assert list(workdir.iterdir()) == []


def test_the_jobs_of_a_sweep_stay_in_its_folder(workdir: Path, capfd: pytest.CaptureFixture):
    line = refused(capfd, "check", "-m", "seed=0,1", "hydra.sweep.subdir=..")
    assert line == "hydra.sweep.subdir=..: a job's folder stands in the sweep's: leave out / and .."


CALLBACKS = "lightning.pytorch.callbacks"
PROFILER = "lightning.pytorch.profilers.SimpleProfiler"
DEEPSPEED = "lightning.pytorch.strategies.DeepSpeedStrategy"
PLACES = {
    "checkpoint": (f"callbacks.x={{_target_: {CALLBACKS}.ModelCheckpoint, dirpath: %s}}", "callbacks.x.dirpath"),
    "its file": (f"callbacks.x={{_target_: {CALLBACKS}.ModelCheckpoint, filename: %s}}", "callbacks.x.filename"),
    "exception": (f"callbacks.x={{_target_: {CALLBACKS}.OnExceptionCheckpoint, dirpath: %s}}", "callbacks.x.dirpath"),
    "profiler": (f"trainer.profiler={{_target_: {PROFILER}, dirpath: %s, filename: p}}", "trainer.profiler.dirpath"),
    "offload": (f"trainer.strategy={{_target_: {DEEPSPEED}, nvme_path: %s}}", "trainer.strategy.nvme_path"),
    "inside": (
        f"trainer.strategy={{_target_: {DEEPSPEED}, config: {{csv_monitor: {{output_path: %s}}}}}}",
        "trainer.strategy.config.csv_monitor.output_path",
    ),
}


@pytest.mark.parametrize("place", ["/tmp/canary", "../canary", "a/../../canary", "'~/canary'", "'file:///tmp/canary'"])
@pytest.mark.parametrize("kind", PLACES)
def test_no_library_writes_outside_the_run(workdir: Path, capfd: pytest.CaptureFixture, kind: str, place: str):
    node, key = PLACES[kind]
    plain = place.strip("'")
    line = refused(capfd, "check", "++" + node.replace("%s", place))
    assert line.startswith(f"{key}='{plain}': a run writes in its own folder alone: name a place in it, such as ")


@pytest.mark.parametrize(
    "name", ["{/tmp/canary}", "{../canary}", "{step:c}", "{step].device.type[0}", "{step:>9999999}"]
)
def test_a_field_of_a_file_name_is_a_metric(workdir: Path, capfd: pytest.CaptureFixture, name: str):
    """Lightning writes its name into the file's, `=` and its value behind it."""
    node = f"+callbacks.x={{_target_: {CALLBACKS}.ModelCheckpoint, filename: '%s'}}"
    assert refused(capfd, "check", node.replace("%s", name)).startswith(f"callbacks.x.filename='{name}': a run writes")
    assert cli("check", node.replace("%s", "{epoch}-{step:06d}-{val/loss:.2f}")) == 0


def test_a_place_that_was_not_checked_is_refused_when_it_is_built(tmp_path: Path):
    node = {"_target_": PROFILER, "dirpath": "/tmp/canary", "filename": "x"}
    with pytest.raises(UserError, match="a run writes in its own folder alone"):
        placed({"profiler": node}, tmp_path)


def test_a_place_of_a_library_is_in_the_run(workdir: Path):
    checkpoint = f"+callbacks.x={{_target_: {CALLBACKS}.ModelCheckpoint, dirpath: mine/all, filename: 'a{{step}}'}}"
    profiler = f"+trainer.profiler={{_target_: {PROFILER}, dirpath: times, filename: p}}"
    small = ["data.limit=64", "model.net.width=2", "trainer.max_epochs=1"]
    assert cli("train", *small, checkpoint, profiler) == 0
    assert {path.name for path in workdir.iterdir()} == {"runs"}
    (trained,) = list_runs()
    assert list((trained.path / "mine" / "all").glob("a*.ckpt"))
    assert list((trained.path / "times").glob("*p*"))
    assert cli("evaluate", "last") == 0
    assert {path.name for path in workdir.iterdir()} == {"runs"}


CLOSED = {
    "leyden.launch.children.Children": "only classes of leyden.",
    "leyden.run.directory.Run": "only classes of leyden.",
    "leyden.checkpoints.sharded._Unpickler": "only classes of leyden.",
    "leyden.sweep.jobs.Processes": "only classes of leyden.",
    "lightning.pytorch.loggers.CSVLogger": "only classes of leyden.",
    "lightning.pytorch.demos.mnist_datamodule.MNISTDataModule": "only classes of leyden.",
    "lightning.pytorch.demos.WikiText2": "only classes of leyden.",
    "lightning.pytorch.strategies.launchers.subprocess_script._SubprocessScriptLauncher": "this class is not built",
    "lightning.pytorch.callbacks.SpikeDetection": "this class is not built",
    "torchmetrics.functional.image.lpips._LPIPS": "this class is not built",
    "torchmetrics.multimodal.CLIPScore": "this class is not built",
    "torchmetrics.text.BERTScore": "this class is not built",
    "torchmetrics.text.InfoLM": "this class is not built",
    "torch.load": "only classes of leyden.",
    "torch.hub.load": "only classes of leyden.",
    "functools.partial": "only classes of leyden.",
}


@pytest.mark.parametrize("target", CLOSED)
def test_what_reads_or_starts_more_is_not_built(workdir: Path, capfd: pytest.CaptureFixture, target: str):
    line = refused(capfd, "check", f"+callbacks.x._target_={target}")
    assert line.startswith(f"callbacks.x._target_={target}: {CLOSED[target]}")


def test_a_class_that_an_allowed_module_only_imports_is_not_built():
    for target in (
        "leyden.callbacks.profile.profile",
        "leyden.sweep.pruning.Sweep",
        "leyden.data.download.FileLock",
    ):
        with pytest.raises(UserError, match="not a class of an allowed package"):
            instantiate({"_target_": target}, "callbacks.x")


def test_where_leyden_writes_is_no_option(workdir: Path, capfd: pytest.CaptureFixture):
    for node in ("callbacks.profile.Profile", "callbacks.checkpoint.Checkpoint", "loggers.record.Record"):
        assert main(["check", f"+callbacks.x={{_target_: leyden.{node}, run_dir: /tmp}}"]) == REQUEST
        assert "callbacks.x.run_dir: leyden sets this itself" in capfd.readouterr().err


@pytest.mark.parametrize("option", ["checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_timm_reads_no_weights_from_elsewhere(option: str):
    with pytest.raises(UserError, match=f"^model.net.options.{option}: weights are those that timm publishes"):
        Timm("resnet18", (3, 8, 8), 2, options={option: "/tmp/x"})


# SLURM: the script that bash and sbatch read


@pytest.fixture
def sbatch(workdir: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queue that takes every job: sbatch, scancel and squeue write down their arguments."""
    programs = workdir / "bin"
    programs.mkdir()
    for name in ("sbatch", "scancel", "squeue"):
        (programs / name).write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" >> {workdir}/{name}.txt\n[ {name} = sbatch ] && echo 7\ntrue\n'
        )
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


QUEUED = ["hydra/launcher=slurm", "trainer.devices=1"]
LINES = {
    "hydra.launcher.partition": "hydra.launcher.partition=",
    "hydra.launcher.account": "hydra.launcher.account=",
    "hydra.launcher.qos": "hydra.launcher.qos=",
    "hydra.launcher.gres": "hydra.launcher.gres=",
    "hydra.launcher.constraint": "hydra.launcher.constraint=",
    "hydra.launcher.mem": "hydra.launcher.mem=",
    "hydra.launcher.time": "hydra.launcher.time=",
    "hydra.launcher.extra.comment": "hydra.launcher.extra=",
    "hydra.run.dir": "hydra.run.dir=",
}


@pytest.mark.parametrize("value", ["a\ntouch canary", "a\rb", "a\x1b[2J", "a\x00b", "a\u2028b"])
@pytest.mark.parametrize("key", LINES)
def test_a_value_for_sbatch_is_one_line(
    workdir: Path, sbatch: Path, capfd: pytest.CaptureFixture, key: str, value: str
):
    argument = f"hydra.launcher.extra={{comment: '{value}'}}" if key.endswith("comment") else f"{key}='{value}'"
    line = refused(capfd, "train", *QUEUED, argument)
    assert line.startswith(LINES[key])
    assert not (workdir / "sbatch.txt").exists()
    assert not (workdir / "runs").exists()


@pytest.mark.parametrize("value", ["--wrap=touch x", "a b; touch x", "$(touch x)", "`touch x`", 'it\'s "it"', "a #b"])
def test_a_value_for_sbatch_stays_one_value(workdir: Path, sbatch: Path, value: str):
    options = slurm_script.Options.of(
        {**launcher(["hydra/launcher=slurm"]), "partition": value, "extra": {"comment": value}}
    )
    folder = workdir / "o'brien's $(touch x)"
    script = slurm_script.job_script(options, slurm_script.Shape(1, 1, 0), [folder], folder, [folder / "code"])
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert {f"--partition={value}", f"--comment={value}"} <= {word for line in directives for word in shlex.split(line)}
    assert all(len(shlex.split(line)) == 1 for line in directives)
    body = script.replace("srun --kill-on-bad-exit=1", "true").replace(f"cd {shlex.quote(str(Path.cwd()))}", "true")
    printed = subprocess.run(["bash", "-c", body + 'printf %s "$run"'], capture_output=True, text=True, cwd=workdir)
    assert printed.stdout == str(folder)
    assert not (workdir / "x").exists()


def test_a_value_with_a_backslash_is_refused(workdir: Path):
    options = slurm_script.Options.of(launcher(["hydra/launcher=slurm"]))
    with pytest.raises(UserError, match="should be one line of printable characters without"):
        slurm_script.job_script(options, slurm_script.Shape(1, 1, 0), [workdir / "a\\b"], workdir / "a\\b", [])
    with pytest.raises(UserError, match=r"hydra\.launcher\.extra"):
        slurm_script.Options.of({**launcher(["hydra/launcher=slurm"]), "extra": {"wrap x\n": "y"}})


SETUP = "hydra:\n  launcher:\n    setup: [touch canary]\n"
THEIRS = {
    "conf/experiment/evil.yaml": f"# @package _global_\n{SETUP}",
    "conf/experiment/accelerator/evil.yaml": f"# @package _global_\n{SETUP}",
    "conf/experiment/part.yaml": f"# @package _global_\n{SETUP}",
    "conf/experiment/with_part.yaml": "# @package _global_\ndefaults: [part]\n",
    "conf/experiment/with_other.yaml": "# @package _global_\ndefaults: [/experiment/part]\n",
    "conf/experiment/climbs.yaml": "# @package _global_\ndefaults: [{override /accelerator: ../experiment/evil}]\n",
    "conf/experiment/merges.yaml": "# @package _global_\nhydra:\n  <<: {launcher: {setup: [touch canary]}}\n",
    "conf/experiment/indented.yaml": f" # @package _global_\n{SETUP}# @package elsewhere\n",
    "conf/experiment/database.yaml": "# @package _global_\nhydra: {<<: {sweeper: {storage: sqlite:///a}}}\n",
    "conf/callbacks/evil.yaml": "# @package hydra.launcher\nsetup: [touch canary]\n",
    "conf/callbacks/more.yaml": "# @package hydra.launcher\nextra: {comment: x}\n",
    "conf/hydra/launcher/mine.yaml": "defaults: [slurm]\nsetup: [touch canary]\n",
    "conf/experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /hydra/launcher: mine\n",
    "conf/accelerator/mine.yaml": (
        "# @package _global_\ndefaults: [{override /hydra/launcher: slurm}]\ntrainer: {devices: 1, num_nodes: 1}\n"
        f"precision: 32\n{SETUP}"
    ),
}
EXPERIMENTS = ("evil", "accelerator/evil", "with_part", "with_other", "climbs", "merges", "indented", "database")


@pytest.fixture
def their_files(workdir: Path) -> None:
    for name, text in THEIRS.items():
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_text(text)


@pytest.mark.usefixtures("their_files")
@pytest.mark.parametrize(
    "choice", [*(f"experiment={name}" for name in EXPERIMENTS), "callbacks=evil", "callbacks=more"]
)
def test_an_experiment_gives_no_shell_lines(workdir: Path, sbatch: Path, capfd: pytest.CaptureFixture, choice: str):
    for command in (("train",), ("train", "-m", "seed=0"), ("check",)):
        line = refused(capfd, *command, *QUEUED, choice)
        assert ": shell lines and databases are taken from the command line, conf/hydra/launcher, conf/hydra/" in line
    assert not (workdir / "sbatch.txt").exists()
    assert not (workdir / "runs").exists()


@pytest.mark.usefixtures("their_files")
def test_who_describes_the_machine_gives_shell_lines(workdir: Path):
    for item in ("accelerator=mine", "hydra/launcher=mine", "experiment=mine"):
        assert compose([item]).launcher["setup"] == ["touch canary"]
    assert compose([*QUEUED, "hydra.launcher.setup=[module load cuda]"]).launcher["setup"] == ["module load cuda"]


def stopped_run(workdir: Path, **facts: object) -> directory.Run:
    """A run of somebody else's that was once in a queue."""
    made = directory.Run.create(compose(["name=mine"]))
    made.set_status("preempted")
    (made.path / "slurm.json").write_text(json.dumps(facts))
    return made


@pytest.mark.parametrize(("key", "value"), [("setup", ["touch canary"]), ("extra", {"comment": "x"})])
def test_a_runs_folder_gives_no_shell_lines(
    workdir: Path, sbatch: Path, capfd: pytest.CaptureFixture, key: str, value: object
):
    made = stopped_run(workdir, job="3", options={key: value})
    line = refused(capfd, "submit", "last")
    assert line.startswith(
        f"{made.name} was submitted with hydra.launcher.{key}, which is not taken from a run's folder"
    )
    assert not (workdir / "sbatch.txt").exists()
    again = shlex.split(line.partition("once more, ")[2].rpartition(", or into")[0])
    assert main(["submit", "last", *again]) == 0
    assert ("touch canary" in (made.path / "job.sh").read_text()) == (key == "setup")


def test_a_runs_job_is_no_option_of_scancel(workdir: Path, sbatch: Path):
    stopped_run(workdir, job="--user=me")
    main(["cancel", "last"])
    assert not (workdir / "scancel.txt").exists()


@pytest.mark.parametrize("where", ["evil", "."])
def test_a_sweeps_folder_does_not_choose_the_project(
    workdir: Path, canary: Path, capfd: pytest.CaptureFixture, where: str
):
    project = workdir / "evil"
    (project / "conf").mkdir(parents=True)
    (project / "conf" / "project.yaml").write_text("targets: [evil]\n")
    (project / "evil.py").write_text(f"open('{canary}/ran', 'w')\n")
    there = str(project) if where == "evil" else where
    (project / "multirun.yaml").write_text(
        f"hydra: {{runtime: {{cwd: '{there}'}}, overrides: {{task: []}}, sweeper: {{_target_: x}}}}\n"
    )
    assert refused(capfd, "resume", str(project)).startswith(
        f"{project} was begun in {there}, and goes on with the project"
    )
    assert list(canary.iterdir()) == []


# Passwords

ADDRESS = "postgresql://me:s3cret@host/db"


def test_an_address_with_a_password_is_not_kept(workdir: Path, capfd: pytest.CaptureFixture):
    sweep = ["-m", "seed=0,1", f"hydra.sweeper.storage='{ADDRESS}'"]
    for command in ("check", "train"):
        line = refused(capfd, command, *sweep)
        assert line.startswith(
            "hydra.sweeper.storage=postgresql://me:***@host/db: a run's folder keeps no passwords: put"
        )
    assert list(workdir.iterdir()) == []


def test_a_config_reads_no_password_from_the_environment(
    workdir: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    for name in ("GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "PGPASSWORD", "MYSQL_PWD"):
        monkeypatch.setenv(name, "s3cret")
        assert refused(capfd, "train", f"name=${{oc.env:{name}}}").startswith(f"name=${{oc.env:{name}}}: ${{oc.env:")
        assert refused(capfd, "train", "-m", "seed=0,1", f"hydra.sweeper.storage=sqlite:///${{oc.env:{name}}}")
    monkeypatch.setenv("MAX_TOKENS", "12")
    assert compose(["name=a${oc.env:MAX_TOKENS}${oc.env:NONE,3}"]).config["name"] == "a123"
    assert list(workdir.iterdir()) == []


def test_a_sweep_to_look_at_makes_no_database(workdir: Path, capfd: pytest.CaptureFixture):
    pytest.importorskip("sqlalchemy")
    database, sweep = workdir / "mine.db", workdir / "theirs"
    with contextlib.closing(sqlite3.connect(database)) as opened:
        opened.execute("CREATE TABLE mine (a)")
    before = database.read_bytes()
    with planned(["seed=0,1"], ["hydra.mode=MULTIRUN"]) as plan:
        master = OmegaConf.to_container(plan.master, resolve=False)
    assert isinstance(master, dict)
    master["hydra"]["runtime"]["cwd"] = str(workdir)
    sweep.mkdir()
    for storage in ("sqlite:///mine.db", f"sqlite:///{database}", "sqlite:///new.db", "${oc.env:NOWHERE}"):
        master["hydra"]["sweeper"]["storage"] = storage
        (sweep / "multirun.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(master)))
        for command in ("show", "resume"):
            (sweep / "study").unlink(missing_ok=True)
            assert re.search("it stopped before it began|NOWHERE", refused(capfd, command, str(sweep)))
            (sweep / "study").write_text("theirs\n")
            assert re.search("its database is gone|NOWHERE", refused(capfd, command, str(sweep)))
    assert database.read_bytes() == before
    assert {path.name for path in workdir.iterdir()} == {"mine.db", "theirs"}


@pytest.mark.slow
def test_a_sweep_goes_on_with_an_address_from_the_environment(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("LEYDEN_STORAGE", f"sqlite:///{workdir}/s3cret.db")
    small = ["data.limit=64", "model.net.width=2", "trainer.max_epochs=1"]
    storage = "hydra.sweeper.storage=${oc.env:LEYDEN_STORAGE}"
    assert cli("train", "-m", *small, storage, "optimizer.lr=0.1,0.2", "hydra.sweeper.n_trials=1") == 0
    folder = next((workdir / "runs").rglob("multirun.yaml")).parent
    assert cli("resume", str(folder), "hydra.sweeper.n_trials=2") == 0
    assert len(list_runs()) == 2
    kept = [path for path in (workdir / "runs").rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert kept == []


@pytest.mark.parametrize(
    "override", [f"+trainer.profiler='{ADDRESS}'", "+callbacks.x={_target_: mine.A, api_key: s3cret}"]
)
def test_a_config_has_no_passwords(workdir: Path, capfd: pytest.CaptureFixture, override: str):
    capfd.readouterr()
    assert main(["train", override]) == REQUEST
    said = capfd.readouterr().err
    assert "a run's folder keeps no passwords" in said
    assert list(workdir.iterdir()) == []


# Links


@pytest.mark.parametrize("command", ["resume", "show", "evaluate", "rerun", "sample"])
@pytest.mark.parametrize("name", ["log.txt", ".lock", "metrics.jsonl", "figures/curves.png", "ranks", "status.json"])
def test_nothing_is_written_through_a_link(workdir: Path, capfd: pytest.CaptureFixture, command: str, name: str):
    run = workdir / "runs" / "theirs" / "1"
    (run / name).parent.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    (workdir / "mine").mkdir()
    (workdir / "mine" / "notes").write_text("mine")
    (run / name).symlink_to("../../../mine" if name == "ranks" else workdir / "mine" / "notes")
    assert refused(capfd, command, "last").startswith(f"{run / name} is a link to ")
    assert [path.read_text() for path in (workdir / "mine").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "typed",
    [
        "hydra.launcher.setup=[touch canary]",
        "+hydra.launcher.extra.comment=x",
        "hydra.launcher={setup: [touch canary]}",
        "hydra={launcher: {setup: [touch canary]}}",
        "hydra.searchpath=[file://evil]",
    ],
)
def test_a_sweeps_folder_says_little_of_hydra(workdir: Path, capfd: pytest.CaptureFixture, typed: str):
    sweep = workdir / "sweep"
    sweep.mkdir()
    overrides = {"hydra": ["hydra/launcher=slurm", "hydra.launcher.time=1:00:00", typed], "task": []}
    began = {"hydra": {"runtime": {"cwd": str(workdir)}, "overrides": overrides, "sweeper": {"_target_": "x"}}}
    (sweep / "multirun.yaml").write_text(json.dumps(began))
    line = refused(capfd, "resume", str(sweep))
    assert line.startswith(f"{sweep} was begun with {typed}, which is not taken from a folder")
    assert not refused(capfd, "resume", str(sweep), typed).startswith(f"{typed}: a sweep goes on as it began")
