"""What git says of a folder, asked so that nothing runs which the repository in it names.

A repository is a stranger's as soon as it was unpacked or copied rather than cloned: its .git/config may name programs
for nearly everything that git does. The user's own git, the one on the search path, is trusted.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

# a program that watches the files, and one that runs after git has renewed its index
SETTINGS = ("core.fsmonitor=false", "core.hooksPath=/dev/null")
# no index is renewed; objects that a partial clone lacks are not fetched, for that starts what the remote names
ENVIRONMENT = {"GIT_OPTIONAL_LOCKS": "0", "GIT_ALLOW_PROTOCOL": ""}
# neither diff.external nor diff.<driver>.command or textconv, nor a second git inside of a submodule
DIFF = ("--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty", "--submodule=short")
TIMEOUT = 20.0  # seconds that a run waits for git
FILTER = re.compile(r"filter\.[^=\n]+\.(clean|smudge|process)")
states: dict[Path, tuple[dict[str, Any] | None, bytes]] = {}  # of folders of which jobs import a copy, when it was made


def ask(*arguments: str, folder: Path | None = None, timeout: float | None = None) -> bytes | None:
    """Return what `git ARGUMENTS` prints in a folder; None when there is no git, no repository, or it fails."""
    settings = [part for setting in SETTINGS for part in ("-c", setting)]
    command = ["git", *settings, *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=os.environ | ENVIRONMENT, capture_output=True, check=True, timeout=timeout
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def state() -> tuple[dict[str, Any] | None, bytes]:
    """Return the commit of the working directory, and what differs from it."""
    commit = ask("rev-parse", "HEAD", timeout=TIMEOUT)
    if commit is None:
        return None, b""
    changes = diff(TIMEOUT)
    listed = ask("ls-files", "--others", "--exclude-standard", timeout=TIMEOUT) or b""
    untracked = listed.decode("utf-8", "replace").splitlines()
    return {"commit": commit.decode().strip(), "dirty": bool(changes), "untracked": untracked[:100]}, changes


def remote() -> str | None:
    """Return the address of the remote `origin`, without a name and a password in it."""
    found = (ask("config", "remote.origin.url") or b"").decode("utf-8", "replace").strip()
    return re.sub(r"//[^/]*@", "//", found) or None


def diff(timeout: float) -> bytes:
    """Return what differs from the last commit, files as they are on the disk; nothing when that cannot be told.

    To compare a file that has a filter (.gitattributes), git runs the filter, so all that are set are unset. Large
    files kept by git-lfs that have changed therefore differ as binary files do. A repository whose files are said to be
    elsewhere (core.worktree) has no difference: it might name the files of somebody's home.
    """
    if not _is_in_place(timeout):
        return b""
    found = ask("config", "--name-only", "-z", "--get-regexp", r"^filter\.", timeout=timeout) or b""
    names = [os.fsdecode(name) for name in found.split(b"\0") if name]
    programs = [name for name in names if name.rpartition(".")[2] in ("clean", "smudge", "process")]
    if not all(FILTER.fullmatch(name) for name in programs):  # `-c` cannot unset a name with an equals sign in it
        return b""
    unset = [f"{name}=" for name in programs]
    unset += [f"{name.rpartition('.')[0]}.required=false" for name in programs]
    settings = [part for setting in unset for part in ("-c", setting)]
    return ask(*settings, "diff", "HEAD", "--no-color", *DIFF, timeout=timeout) or b""


def _is_in_place(timeout: float) -> bool:
    """Whether the files that git compares lie beside the `.git` that it found, or where the user has said."""
    if {"GIT_DIR", "GIT_WORK_TREE"} & os.environ.keys():
        return True
    top = os.fsdecode(ask("rev-parse", "--show-toplevel", timeout=timeout) or b"").removesuffix("\n")
    here = Path.cwd()
    found = next((folder for folder in (here, *here.parents) if os.path.lexists(folder / ".git")), None)
    return found is not None and bool(top) and Path(top).resolve() == found.resolve()
