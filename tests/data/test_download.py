"""A download takes the first mirror that works, goes on where it broke off, and is proved before it is used."""

import hashlib
import re
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from leyden.data import download as download_module
from leyden.data.download import Files, Remote, download
from leyden.errors import UserError
from support.file_server import CONTENT


def remote_file(file_server, *kinds: str) -> Remote:
    address, _ = file_server
    digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    return Remote("file.bin", digest, tuple(f"{address}/{kind}/file.bin" for kind in kinds))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/sub cannot be made \(.*\): set data\.data_dir or LEYDEN_DATA"):
        download(Remote("a", "md5:0", ()), tmp_path / "file" / "sub" / "a")


def test_download_takes_the_first_mirror_that_works(file_server, tmp_path, capsys):
    remote, path = remote_file(file_server, "gone", "wrong", "good", "never"), tmp_path / "new" / "file.bin"
    download(remote, path)
    assert remote.read(path) == CONTENT
    assert [request for request, _ in file_server[1].requests] == [f"/{k}/file.bin" for k in ("gone", "wrong", "good")]
    assert "downloading file.bin (10.2 kB) from" in capsys.readouterr().err.replace("\n", " ")
    assert not path.with_name("file.bin.part").exists()
    download(remote, path)
    assert len(file_server[1].requests) == 3  # it is there


def test_download_resumes_what_broke_off(file_server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "MAX_TRIES", 3)
    remote, path = remote_file(file_server, "cut", "good"), tmp_path / "file.bin"
    download(remote, path)
    assert path.read_bytes() == CONTENT
    ranges = [wanted for _, wanted in file_server[1].requests]
    assert ranges == [None, "bytes=5120-", "bytes=7680-", "bytes=8960-"]


@pytest.mark.parametrize("kind", ["good", "plain"])
@pytest.mark.parametrize("left", [b"\0\1\2\3", b"wrong", b"?" * 10240, b"?" * 20000, CONTENT])
def test_download_survives_what_an_earlier_one_left(file_server, tmp_path, kind, left):
    path = tmp_path / "file.bin"
    path.with_name("file.bin.part").write_bytes(left)
    download(remote_file(file_server, kind), path)
    assert path.read_bytes() == CONTENT
    if kind == "plain" or left == CONTENT:  # plain sends all of it whatever is asked for
        assert len(file_server[1].requests) == 1


def test_a_failed_download_names_every_mirror_and_the_way_out(file_server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "MAX_TRIES", 2)
    remote = remote_file(file_server, "gone", "wrong", "cut")
    remote = remote._replace(urls=(*remote.urls, "http://127.0.0.1:1/file.bin"))
    with pytest.raises(UserError) as caught:
        download(remote, tmp_path / "file.bin")
    message = str(caught.value)
    assert message.startswith("file.bin could not be downloaded from http://127.0.0.1:")
    assert re.search(
        r"/gone/file\.bin \(HTTP 404 Not Found\) nor .*/wrong/file\.bin \(has sha256 \w+, not \w+\)", message
    )
    assert re.search(r"/cut/file\.bin \(the connection closed after 7680 of 10240 bytes\)", message)
    assert re.search(r"127\.0\.0\.1:1/file\.bin \(.*refused.*\): put the file by hand at .*/file\.bin$", message)
    assert not (tmp_path / "file.bin").exists()
    assert (tmp_path / "file.bin.part").stat().st_size == 7680  # for the next call


def test_files_are_found_before_they_are_fetched(file_server, tmp_path):
    remote, data_dir = remote_file(file_server, "good"), tmp_path / "data"
    files = Files("folder", (remote,), data_dir=data_dir)
    with pytest.raises(UserError, match=r"data\.data_dir=.*data is not a folder: create it or name another"):
        files.fetch()
    data_dir.mkdir()
    with pytest.raises(UserError, match=r"data/folder/file\.bin does not exist: call prepare_data\(\)"):
        files.read(remote)
    for _ in range(2):
        files.fetch()
    assert files.read_verified(remote) == (data_dir / "folder" / "file.bin", CONTENT)
    elsewhere = files._replace(folder="other", installed=(data_dir / "nowhere", data_dir / "folder"))
    renamed = files._replace(path=(data_dir / "folder" / "file.bin").rename(data_dir / "renamed"))
    renamed.fetch()
    assert renamed.read(remote) == CONTENT
    assert (elsewhere.find(remote), len(file_server[1].requests)) == (None, 1)
    files.fetch()
    elsewhere.fetch()
    assert (elsewhere.find(remote), len(file_server[1].requests)) == (data_dir / "folder" / "file.bin", 2)


def test_many_processes_download_once(file_server, tmp_path):
    remote, path = remote_file(file_server, "good"), tmp_path / "file.bin"
    threads = [threading.Thread(target=download, args=(remote, path)) for _ in range(4)]
    with FileLock(f"{path}.lock"):  # of another process: a download is so short that four may never meet
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(0.25)
        assert file_server[1].requests == []
    for thread in threads:
        thread.join()
    assert len(file_server[1].requests) == 1
