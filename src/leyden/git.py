"""Queries of git repositories during which git runs no program that the repository names.

A repository that was unpacked or copied rather than cloned is not trusted: its .git/config may name programs for
nearly everything that git does. The git on the user's search path is trusted.
"""

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# core.fsmonitor may name a program that watches the files; hooks are programs that run when git updates its index.
SETTINGS = ("core.fsmonitor=false", "core.hooksPath=/dev/null")
# Git must not update the index, nor fetch the objects that a partial clone lacks: a remote may name a program to run.
ENVIRONMENT = {"GIT_OPTIONAL_LOCKS": "0", "GIT_ALLOW_PROTOCOL": ""}
# Git must not run diff.external, diff.<driver>.command or textconv, or a second git in a submodule.
DIFF = ("--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty", "--submodule=short")
TIMEOUT = 20.0  # seconds that a run waits for git
FILTER = re.compile(r"filter\.[^=\n]+\.(clean|smudge|process)")
# The state of each folder whose code was copied for jobs, recorded at the time of the copy.
states: dict[Path, tuple[dict[str, Any] | None, bytes]] = {}


def run_git(*arguments: str, folder: Path | None = None, timeout: float | None = None) -> bytes | None:
    """Return what `git ARGUMENTS` prints in a folder; None if there is no git or no repository, or git fails."""
    command = ["git", *_options(SETTINGS), *arguments]
    options: dict[str, Any] = {"cwd": folder, "env": os.environ | ENVIRONMENT, "timeout": timeout}
    try:
        return subprocess.run(command, capture_output=True, check=True, **options).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _options(settings: Iterable[str]) -> list[str]:
    return [part for setting in settings for part in ("-c", setting)]


def state(folder: Path) -> tuple[dict[str, Any] | None, bytes]:
    """Return the commit of a folder's repository, and the diff against it."""
    commit = run_git("rev-parse", "HEAD", folder=folder, timeout=TIMEOUT)
    if commit is None:
        return None, b""
    changes = diff(folder, TIMEOUT)
    output = run_git("ls-files", "--others", "--exclude-standard", folder=folder, timeout=TIMEOUT) or b""
    untracked_files = output.decode("utf-8", "replace").splitlines()
    return {"commit": commit.decode().strip(), "dirty": bool(changes), "untracked": untracked_files[:100]}, changes


def remote() -> str | None:
    """Return the URL of the remote `origin`, without the user name and password."""
    address = (run_git("config", "remote.origin.url") or b"").decode("utf-8", "replace").strip()
    return re.sub(r"//[^/]*@", "//", address) or None


def diff(folder: Path, timeout: float) -> bytes:
    """Return the diff of the work tree against the last commit; empty if it cannot be made safely.

    To compare a file that has a filter (.gitattributes), git would run the filter, so all filters are unset. Changed
    files of git-lfs are therefore compared as binary files. If core.worktree says that the work tree lies elsewhere,
    there is no diff, because it might name somebody's home folder.
    """
    if not _is_worktree_trusted(folder, timeout):
        return b""
    arguments = ("config", "--name-only", "-z", "--get-regexp", r"^filter\.")
    output = run_git(*arguments, folder=folder, timeout=timeout) or b""
    names = [os.fsdecode(name) for name in output.split(b"\0") if name]
    programs = [name for name in names if name.rpartition(".")[2] in ("clean", "smudge", "process")]
    if not all(FILTER.fullmatch(name) for name in programs):  # `-c` cannot unset a name with an equals sign in it
        return b""
    unset_options = [f"{name}=" for name in programs]
    unset_options += [f"{name.rpartition('.')[0]}.required=false" for name in programs]
    arguments = (*_options(unset_options), "diff", "HEAD", "--no-color", *DIFF)
    return run_git(*arguments, folder=folder, timeout=timeout) or b""


def _is_worktree_trusted(folder: Path, timeout: float) -> bool:
    """Return whether the work tree is the folder that contains `.git`, or was set by GIT_DIR or GIT_WORK_TREE."""
    if {"GIT_DIR", "GIT_WORK_TREE"} & os.environ.keys():
        return True
    output = run_git("rev-parse", "--show-toplevel", folder=folder, timeout=timeout) or b""
    top_level = os.fsdecode(output).removesuffix("\n")
    root = next((parent for parent in (folder, *folder.parents) if os.path.lexists(parent / ".git")), None)
    return root is not None and bool(top_level) and Path(top_level).resolve() == root.resolve()
