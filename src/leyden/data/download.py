"""Files of data sets: their folders, and downloads that are resumed and verified by digests."""

import hashlib
import os
import zlib
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from leyden.errors import UserError
from leyden.preparation.lines import gunzip

MAX_DOWNLOAD = 1 << 30  # bytes; the largest file, WikiText-103, has 190 MB
MAX_UNPACKED = 1 << 26  # bytes; the largest unpacked file, Fashion-MNIST's pictures, has 47 MB
MAX_TRIES = 5  # tries per mirror; no further try is made after one that downloads nothing
TIMEOUT = 30.0  # seconds without a byte


class TooLargeError(Exception):
    """A mirror sends more bytes than any data set has."""


def data_root(data_dir: str | Path | None = None) -> Path:
    """Return the folder of all data sets: `data_dir`, which must exist; by default $LEYDEN_DATA or ~/.cache/leyden."""
    if data_dir is None:
        return Path(os.environ.get("LEYDEN_DATA") or "~/.cache/leyden").expanduser()
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"data.data_dir={data_dir} is not a folder: create it or name another")
    return root


def package_folder(package: str, advice: str) -> Path:
    """Return the folder of an installed package without importing it; UserError with `advice` if there is none."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(advice)
    return Path(spec.origin).parent


class Remote(NamedTuple):
    """A file on one or more mirrors, and the digest that verifies it.

    `digest` is `md5:…` or `sha256:…`, of the file itself or, if `unpacked`, of its unpacked content (because mirrors
    have compressed the same pictures to different bytes).
    """

    name: str
    digest: str
    urls: tuple[str, ...]
    unpacked: bool = False

    @classmethod
    def on(cls, mirrors: tuple[str, ...], name: str, digest: str, *, unpacked: bool = False) -> "Remote":
        """Return the file `name` on `mirrors`, the URLs of folders."""
        return cls(name, digest, tuple(f"{mirror}/{name}" for mirror in mirrors), unpacked)

    def read(self, path: Path) -> bytes:
        """Return the content of `path`, unpacked if `unpacked`; UserError if its digest is wrong."""
        content = path.read_bytes()
        if self.unpacked:
            try:
                content = gunzip(content, MAX_UNPACKED)  # limited, because the digest is not checked yet
            except (OSError, EOFError, zlib.error) as error:
                raise UserError(f"{path} is not a whole gzip file ({error}): delete it and start again") from None
        algorithm, expected = self.digest.split(":")
        actual = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
        if actual != expected:
            raise UserError(f"{path} has {algorithm} {actual}, not {expected}: delete it and start again")
        return content


class Files(NamedTuple):
    """The files of a data set in `folder` of the data root; a single file may be at `path` instead.

    A system package may have installed the same files in one of the folders `installed`.
    """

    folder: str
    remotes: tuple[Remote, ...]
    installed: tuple[Path, ...] = ()
    data_dir: Path | None = None  # the data root; None: see `data_root`
    path: Path | None = None

    def find(self, remote: Remote) -> Path | None:
        """Return the path of a file, or None if it is missing."""
        paths = (self._download_path(remote), *(folder / remote.name for folder in self.installed))
        return next((path for path in paths if path.is_file()), None)

    def fetch(self) -> None:
        """Download the missing files."""
        for remote in self.remotes:
            if self.find(remote) is None:
                download(remote, self._download_path(remote))

    def read_verified(self, remote: Remote) -> tuple[Path, bytes]:
        """Return the path and the content of a file, verified by its digest.

        Raises:
            UserError: if the file is missing, or its digest is wrong.
        """
        path = self.find(remote)
        if path is None:
            raise UserError(
                f"{self._download_path(remote)} does not exist: call prepare_data(), or put the file there by hand"
            )
        try:
            return path, remote.read(path)
        except UserError as error:
            if self.path is None:
                raise
            reason = str(error).removesuffix(": delete it and start again")
            raise UserError(
                f"data.path is not a copy of {remote.name}: {reason}; for your own files set data=text, data=series …"
            ) from None

    def read(self, remote: Remote) -> bytes:
        """Return the content of a file, verified by its digest."""
        return self.read_verified(remote)[1]

    def _download_path(self, remote: Remote) -> Path:
        return Path(self.path) if self.path else data_root(self.data_dir) / self.folder / remote.name


def download(remote: Remote, path: Path) -> None:
    """Download `remote` to `path` unless it exists, in one process at a time.

    Bytes are written to `path`.part, which a later call continues.

    Raises:
        UserError: if all mirrors fail; it names each of them and the reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be made ({error.strerror}): set data.data_dir or LEYDEN_DATA to another folder"
        ) from error
    with FileLock(f"{path}.lock"):
        if path.exists():
            return
        part_path = path.with_name(path.name + ".part")
        reasons = []
        for url in remote.urls:
            reason = _fetch_from_mirror(url, remote, part_path)
            if reason is None:
                part_path.replace(path)
                return
            reasons.append(f"{url} ({reason})")
        raise UserError(
            f"{remote.name} could not be downloaded from {' nor '.join(reasons)}: put the file by hand at {path}"
        )


def _fetch_from_mirror(url: str, remote: Remote, part_path: Path) -> str | None:
    """Complete `part_path` from one mirror; return the reason for a failure, or None."""
    reason = "no bytes arrived"
    for _ in range(MAX_TRIES):
        size_before = part_path.stat().st_size if part_path.exists() else 0
        try:
            _fetch(url, remote.name, part_path)
        except HTTPError as error:
            return f"HTTP {error.code} {error.reason}"
        except TooLargeError as error:
            part_path.unlink(missing_ok=True)
            return str(error)
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
            if not part_path.exists() or part_path.stat().st_size <= size_before:
                return reason
            continue
        try:
            remote.read(part_path)
        except UserError as error:
            part_path.unlink()
            reason = str(error).removeprefix(f"{part_path} ").removesuffix(": delete it and start again")
            if not size_before:
                return reason
            continue  # an earlier call may have left wrong bytes: try once more from the start
        return None
    return reason


def _fetch(url: str, name: str, part_path: Path) -> None:
    """Append the missing bytes to `part_path`; start over if the server ignores the offset."""
    offset = part_path.stat().st_size if part_path.exists() else 0
    request = Request(url, headers={"User-Agent": "leyden"} | ({"Range": f"bytes={offset}-"} if offset else {}))
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and offset:  # the file is complete; its digest decides whether it is the right one
            return
        raise
    with response:
        if response.status != 206:
            offset = 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length else None
        if (total or 0) > MAX_DOWNLOAD:
            raise TooLargeError(f"it would send {decimal(total or 0)}; the limit is {decimal(MAX_DOWNLOAD)}")
        console = Console(stderr=True, markup=False)
        if not console.is_terminal:
            console.print(f"downloading {name} ({decimal(total) if total else 'unknown size'}) from {url}")
        columns = (TextColumn(name, markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with (
            Progress(*columns, console=console, disable=not console.is_terminal) as progress,
            part_path.open("ab" if offset else "wb") as file,
        ):
            task = progress.add_task(name, total=total, completed=offset)
            while block := response.read(1 << 20):
                if file.tell() + len(block) > MAX_DOWNLOAD:
                    raise TooLargeError(f"it sends more than {decimal(MAX_DOWNLOAD)}")
                file.write(block)
                progress.update(task, advance=len(block))
            offset = file.tell()
    if total is not None and offset < total:
        raise ConnectionError(f"the connection closed after {offset} of {total} bytes")
