"""Training in somebody else's repository starts no program that its git configuration names."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from leyden import git
from leyden.loggers.wandb import Wandb
from leyden.run import project_code
from leyden.run.find import list_runs
from support import wandb_server
from support.processes import cli

pytestmark = pytest.mark.usefixtures("undrawn")


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
    project_code.copy_code(workdir, canary.parent / "copy", workdir / "runs", 10)
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
    facts, diff = git.state(Path.cwd())
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
    assert git.state(Path.cwd())[1] == b""
    assert list(canary.iterdir()) == []


def test_the_difference_holds_no_files_from_elsewhere(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    repository(workdir / "project")
    home = workdir / "home"
    home.mkdir()
    (home / "notes.txt").write_text("s3cret\n")
    os.chdir(workdir / "project")
    assert git.state(Path.cwd())[1]
    in_git("config", "core.worktree", str(home))
    assert b"s3cret" in subprocess.run(["git", "diff", "HEAD"], capture_output=True).stdout, "this door is real"
    assert git.state(Path.cwd())[1] == b""
    in_git("config", "core.worktree", str(workdir / "project"))
    (workdir / "project" / "inner").mkdir()
    os.chdir("inner")
    assert git.state(Path.cwd())[1]


def test_a_filter_that_cannot_be_unset_has_no_diff(workdir: Path, canary: Path):
    repository(workdir, "*.txt filter=a=b\n")
    in_git("config", "filter.a=b.clean", f"touch {canary}/clean; cat")
    assert git.diff(Path.cwd(), 20) == b""
    assert list(canary.iterdir()) == []


def test_a_file_that_is_not_utf8_has_a_diff(workdir: Path):
    repository(workdir)
    (workdir / "notes.txt").write_bytes(b"\xe9\n")
    assert b"+\xe9" in git.state(Path.cwd())[1]


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
    logger.close(0)  # takes the client's folders out of the environment of the tests that follow
