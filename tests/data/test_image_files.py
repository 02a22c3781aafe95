"""Files of image data sets are found or downloaded, verified by their digests, and checked against the config."""

import gzip
import hashlib
import io
import re
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from leyden.config.annotations import complaint
from leyden.config.compose import compose
from leyden.config.instantiate import instantiate
from leyden.config.locations import CONF
from leyden.config.signatures import signature
from leyden.config.yaml_files import choices
from leyden.data.download import Remote, data_root
from leyden.data.images.cifar import CIFAR10, CIFAR100
from leyden.data.images.images import Images
from leyden.data.images.mnist import MNIST, FashionMNIST
from leyden.errors import UserError
from support.images import digits, write_pictures

FASHION = FashionMNIST.installed[0]


def mnist(kind: type[MNIST] = MNIST, **options) -> MNIST:
    return kind(**{"num_classes": 10, "image_shape": (1, 28, 28)} | options)


def test_digits_are_those_of_scikit_learn():
    data = digits()
    data.setup()
    sizes = {name: entry["size"] for name, entry in data.fingerprint().items()}
    assert sizes == {"train": 1294, "val": 144, "test": 359}
    counts = np.bincount(data._splits["test"].labels)
    assert set(counts) == {35, 36, 37}
    rows = [
        bytes([*np.rint(image.flatten() * (16 / 255)).astype(np.uint8), label])
        for split in data._splits.values()
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    # of the rows of load_digits(), each 64 levels and the label, sorted
    reference = "f67d6a29d0e1f70e7f0cd9dcf25816b694881f4b8f27f5cc1db59551f0499fb8"
    assert hashlib.sha256(b"".join(sorted(rows))).hexdigest() == reference


def test_facts_are_compared_with_the_files():
    message = "data.image_shape=[1, 28, 28] does not fit the files: write data.image_shape=[1, 8, 8]"
    with pytest.raises(UserError, match=re.escape(message)):
        digits(image_shape=[1, 28, 28]).setup()


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_the_system_is_found_and_proved(tmp_path):
    data = mnist(FashionMNIST, mean=0.2860, std=0.3530, val_size=5000, data_dir=tmp_path)
    data.prepare_data()
    data.setup()
    assert [len(split.labels) for split in data._splits.values()] == [55000, 5000, 10000]
    assert np.bincount(data._splits["val"].labels).tolist() == [500] * 10
    assert list(tmp_path.iterdir()) == []
    image = data.train_dataloader().batch(0, 0).image
    assert abs(image.mean().item()) < 0.1
    assert abs(image.std().item() - 1) < 0.1


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, unpacked: bool) -> tuple[Remote, ...]:
    """Write a miniature MNIST and return what proves it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    remotes = []
    for prefix, size in (("train", 40), ("t10k", 20)):
        images, labels = rng.integers(256, size=(size, 28, 28)), np.arange(size) % 10
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            path, packed = folder / f"{prefix}-{name}-ubyte.gz", gzip.compress(idx(array))
            path.write_bytes(packed)
            proof = hashlib.sha256(idx(array)) if unpacked else hashlib.md5(packed)
            remotes.append(Remote(path.name, f"{proof.name}:{proof.hexdigest()}", (path.as_uri(),), unpacked))
    return tuple(remotes)


@pytest.mark.filterwarnings("error")  # torch's, about arrays that are not writable
@pytest.mark.parametrize("kind", [MNIST, FashionMNIST])
def test_idx_files(tmp_path, monkeypatch, kind):
    remotes = write_mnist(tmp_path / kind.folder, unpacked=kind is FashionMNIST)
    assert [r.name for r in remotes] == [r.name for r in kind.remotes]
    monkeypatch.setattr(kind, "remotes", remotes)
    data = mnist(kind, batch_size=4, data_dir=tmp_path)
    data.prepare_data()
    data.setup()
    expected = np.random.default_rng(0).integers(256, size=(40, 28, 28))
    train, val, test = data._splits.values()
    assert (len(train.labels), len(val.labels), len(test.labels)) == (36, 4, 20)
    assert np.concatenate([train.images, val.images]).sum() == expected.sum()
    assert test.labels.tolist() == [k % 10 for k in range(20)]
    assert [len(batch.label) for batch in data.test_dataloader()] == [4] * 5

    name = remotes[0].name
    (tmp_path / kind.folder / name).write_bytes(gzip.compress(b"other"))
    with pytest.raises(UserError, match=rf"{name} has (md5|sha256) \w+, not \w+: delete it and start again"):
        mnist(kind, data_dir=tmp_path).setup()


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x03", b"\0\0\x09\x01\0\0\0\1a", b"\0\0\x08\x01\0\0\0\2a"])
def test_what_is_not_idx_is_refused(tmp_path, monkeypatch, content):
    remotes = write_mnist(tmp_path / "mnist", unpacked=False)
    packed = gzip.compress(content)
    (tmp_path / "mnist" / remotes[0].name).write_bytes(packed)
    wrong = remotes[0]._replace(digest=f"md5:{hashlib.md5(packed).hexdigest()}")
    monkeypatch.setattr(MNIST, "remotes", (wrong, *remotes[1:]))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is not an IDX file of bytes"):
        mnist(data_dir=tmp_path).setup()


def write_archive(path: Path, members: dict[str, bytes]) -> Remote:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Remote(path.name, f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}", ())


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_cifar_archives(tmp_path, monkeypatch, kind):
    classes, rng = len(kind.names), np.random.default_rng(0)
    size = 2 * classes  # of each member
    members, images = {"../outside.bin": b"x"}, {}
    for name in reversed(kind.members):  # in any order
        images[name] = rng.integers(256, size=(size, 3072), dtype=np.uint8)
        coarse = np.full((size, kind.label_bytes - 1), 77, np.uint8)
        labels = (np.arange(size, dtype=np.uint8) % classes)[:, None]
        members[name] = np.concatenate([coarse, labels, images[name]], axis=1).tobytes()
    remote = write_archive(tmp_path / "cifar" / kind.remotes[0].name, members)
    monkeypatch.setattr(kind, "remotes", (remote,))
    options = {"num_classes": classes, "image_shape": (3, 32, 32), "val_size": 0.2, "data_dir": tmp_path}
    data = kind(**options)
    data.prepare_data()
    data.setup()
    assert len(data.classes) == classes == len(set(data.classes))
    test = data._splits["test"]
    assert np.array_equal(test.images, images[kind.members[-1]].reshape(-1, 3, 32, 32))
    assert test.labels.tolist() == [k % classes for k in range(size)]
    assert len(data._splits["train"].labels) == size * 8 // 10 * (len(kind.members) - 1)
    assert [p.name for p in tmp_path.rglob("*.bin")] == []  # nothing was unpacked

    del members[kind.members[0]]
    remote = write_archive(tmp_path / "cifar" / remote.name, members)
    monkeypatch.setattr(kind, "remotes", (remote,))
    with pytest.raises(UserError, match=f"{remote.name} lacks {kind.members[0]}: delete it"):
        kind(**options).setup()


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"mnist/train-images-idx3-ubyte\.gz does not exist: call prepare_data\(\)"):
        mnist(data_dir=tmp_path).setup()
    with pytest.raises(UserError, match=r"data\.data_dir=.*nowhere is not a folder"):
        mnist(data_dir=tmp_path / "nowhere").prepare_data()


def test_prepare_data_downloads_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("LEYDEN_DATA", str(tmp_path / "new"))
    monkeypatch.setattr(MNIST, "remotes", write_mnist(tmp_path / "mirror", unpacked=False))
    mnist().prepare_data()
    shutil.rmtree(tmp_path / "mirror")
    data = mnist()
    data.prepare_data()
    data.setup()
    names = {path.name for path in (tmp_path / "new" / "mnist").glob("*.gz")}
    assert names == {remote.name for remote in MNIST.remotes}
    monkeypatch.delenv("LEYDEN_DATA")
    assert data_root() == Path.home() / ".cache" / "leyden"


IMAGE_CHOICES = [path.stem for path in choices(CONF / "data") if "image_shape" in path.read_text()]


@pytest.mark.parametrize("choice", IMAGE_CHOICES)
def test_each_choice_states_the_facts_of_its_class(choice, tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    extra = [f"data.train={pictures}", "data.num_classes=2"] if choice == "image_folder" else []
    node = compose([f"data={choice}", "seed=3", *extra]).config["data"]
    data = instantiate(node, "data")
    assert isinstance(data, Images)
    assert data.num_classes == len(data.classes)
    assert len(data.mean) == len(data.std) == (data.image_shape[0] if choice.startswith(("cifar", "image")) else 1)
    assert {"crop", "crop_mode", "flip", "cutout", "mixup", "cutmix"} <= node.keys()  # visible


def test_a_mistyped_argument_is_caught_before_anything_is_built():
    parameters = signature("leyden.data.ImageFolder").parameters
    assert "flipp" not in parameters
    assert complaint(parameters["flip"], "yes") == "should be a valid boolean"
    assert complaint(parameters["val_size"], 0)
    assert complaint(parameters["val_size"], 5000) is complaint(parameters["val_size"], 0.1) is None
