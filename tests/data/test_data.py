"""Promises of the image data: batches are pure functions, every example counts once, files are proved."""

import gzip
import hashlib
import io
import re
import shutil
import struct
import tarfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leyden.batch import ImageBatch
from leyden.config.compose import compose
from leyden.config.groups import choices
from leyden.config.instantiate import instantiate
from leyden.config.locations import CONF
from leyden.config.signatures import complaint, signature
from leyden.data.cifar import CIFAR10, CIFAR100
from leyden.data.digits import Digits
from leyden.data.download import Remote, data_root
from leyden.data.image_folder import ImageFolder
from leyden.data.image_loader import Augmentation, EvalLoader, ImageStore, TrainLoader, draw_plan
from leyden.data.images import Images
from leyden.data.mnist import MNIST, FashionMNIST
from leyden.data.split import Split
from leyden.errors import UserError

MEAN, STD = [0.3, 0.4, 0.5], [0.2, 0.3, 0.4]
EVERYTHING = Augmentation(crop=2, crop_mode="reflect", flip=True, cutout=3, mixup=0.4)
AUGMENTATIONS = [Augmentation(), EVERYTHING, Augmentation(crop=1), Augmentation(flip=True, cutmix=1.0)]


def pixels(size: int = 24, shape: tuple[int, int, int] = (3, 6, 5)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(256, size=(size, *shape), dtype=np.uint8))


def train_loader(size: int = 24, **options) -> TrainLoader:
    labels = torch.arange(size) % 4
    options = {"mean": MEAN, "std": STD, "num_classes": 4, "batch_size": 8} | options
    return TrainLoader(pixels(size), labels, **options)


def equal(a: ImageBatch, b: ImageBatch) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.label, b.label)


# Loading: what a batch holds


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 9), (7, 4)])
def test_one_gather_equals_slicing_each_sample(height, width):
    rng = np.random.default_rng(height)
    for channels, crop, mode, mirror in product((1, 2, 3), range(4), ("zero", "reflect"), (False, True)):
        images = rng.integers(256, size=(5, channels, height, width), dtype=np.uint8)
        options = {"crop": crop, "crop_mode": mode, "mirror": mirror}
        store = ImageStore(torch.from_numpy(images), [0.0], [1 / 255], torch.device("cpu"), **options)
        index, flip = rng.integers(5, size=7), rng.integers(2, size=7) if mirror else np.zeros(7, int)
        top, left = rng.integers(2 * crop + 1, size=(2, 7))
        got = store.gather(*map(torch.from_numpy, (index, flip, top, left)))
        border = ((0, 0), (crop, crop), (crop, crop))
        for k in range(7):
            image = np.pad(images[index[k]], border, mode="reflect" if mode == "reflect" else "constant")
            image = image[..., ::-1] if flip[k] else image
            expected = image[:, top[k] : top[k] + height, left[k] : left[k] + width]
            assert np.array_equal(got[k].numpy(), expected)


def test_gather_is_the_same_in_torch_alone():
    """The way other devices go: torch's indexing of the same view."""
    store = ImageStore(pixels(), MEAN, STD, torch.device("cpu"), crop=2, mirror=True)
    where = [torch.randint(high, (16,)) for high in (24, 2, 5, 5)]
    assert torch.equal(store.gather(*where), store._normalise(store._windows[tuple(where)]))


def test_normalisation_is_that_of_pixels_from_0_to_1():
    store = ImageStore(pixels(), MEAN, STD, torch.device("cpu"))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(store.take(slice(3, 9)), (pixels()[3:9] / 255 - mean) / std)
    assert torch.equal(store.take(slice(0, 9)), store.gather(torch.arange(9), None, None, None))


def test_channels_last_changes_the_layout_only():
    a, b = train_loader(), train_loader(channels_last=True)
    assert b.batch(0, 0).image.is_contiguous(memory_format=torch.channels_last)
    assert equal(a.batch(0, 0), b.batch(0, 0))


def test_batch_types():
    hard, soft = train_loader().batch(0, 0), train_loader(augmentation=EVERYTHING).batch(0, 0)
    assert (hard.image.dtype, hard.label.dtype, hard.label.shape) == (torch.float32, torch.int64, (8,))
    assert (soft.image.shape, soft.label.dtype, soft.label.shape) == ((8, 3, 6, 5), torch.float32, (8, 4))
    torch.testing.assert_close(soft.label.sum(1), torch.ones(8))


def test_training_batches_do_not_change_the_stored_pixels():
    loader = train_loader(augmentation=EVERYTHING)
    before = loader.batch(3, 1)
    for batch in loader:
        batch.image.zero_()
    assert equal(loader.batch(3, 1), before)


def test_cutout_sets_a_square_to_the_mean():
    image = train_loader(augmentation=Augmentation(cutout=3), mean=[2.0] * 3).batch(0, 0).image  # no pixel is 0
    holes = (image == 0).all(1).flatten(1).sum(1)
    assert holes.max() == 9
    assert (holes >= 4).all()  # a square clipped by a corner
    plan = draw_plan(1000, 6, 5, 8, 0, 0, Augmentation(cutout=3))
    assert set(plan.cutout[:, 0].tolist()) == set(range(-1, 5))


def test_mixup_is_the_papers_formula():
    augmentation = Augmentation(mixup=0.4)
    plan, plain = draw_plan(24, 6, 5, 8, 0, 0, augmentation), train_loader()
    image, label = train_loader(augmentation=augmentation).batch(0, 1)
    own, partner, share = plain.batch(0, 1), plan.partner[8:16] - 8, plan.share[8:16]
    weight = share.view(-1, 1, 1, 1)
    torch.testing.assert_close(image, weight * own.image + (1 - weight) * own.image[partner])
    one_hot = torch.eye(4)[own.label]
    torch.testing.assert_close(label, share[:, None] * one_hot + (1 - share[:, None]) * one_hot[partner])


def test_cutmix_weighs_labels_by_the_pixels_shown():
    augmentation = Augmentation(cutmix=1.0)
    plan, plain = draw_plan(24, 6, 5, 8, 0, 0, augmentation), train_loader()
    image, label = train_loader(augmentation=augmentation).batch(0, 0)
    own, partner = plain.batch(0, 0), plan.partner[:8]
    from_own = (image == own.image).all(1).flatten(1).float().mean(1)
    one_hot = torch.eye(4)[own.label]
    moved = partner != torch.arange(8)
    torch.testing.assert_close(from_own[moved], plan.share[:8][moved])
    torch.testing.assert_close(label, from_own[:, None] * one_hot + (1 - from_own[:, None]) * one_hot[partner])


def test_partners_stay_in_their_batch_and_each_is_one_once():
    for size, batch_size in product(range(1, 61), (1, 2, 7, 8, 20)):
        partner = draw_plan(size, 4, 4, batch_size, size, 0, Augmentation(mixup=1.0)).partner
        assert torch.equal(partner // batch_size, torch.arange(size) // batch_size)
        assert torch.equal(partner.sort().values, torch.arange(size))


# Loading: order


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_seeking_into_an_epoch_equals_having_come_there(augmentation):
    straight = train_loader(augmentation=augmentation)
    epochs = [list(straight) for _ in range(3)]
    resumed = train_loader(augmentation=augmentation)
    resumed.seek(1, 2)
    rest = [*resumed, *resumed]  # the end of epoch 1, then epoch 2
    assert len(rest) == 1 + 3
    assert all(map(equal, rest, [*epochs[1][2:], *epochs[2]]))
    resumed.seek(0, 3)
    assert list(resumed) == []


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_make_the_same_global_batch(augmentation, world_size):
    one = list(train_loader(augmentation=augmentation, seed=7))
    ranks = [
        list(train_loader(augmentation=augmentation, seed=7, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    for whole, *parts in zip(one, *ranks, strict=True):
        assert equal(whole, ImageBatch(*map(torch.cat, zip(*parts, strict=True))))


def test_epochs_and_seeds_differ_and_each_epoch_shows_every_example_once():
    loader = train_loader(size=64)
    first, second = (torch.cat([batch.image for batch in loader]) for _ in range(2))
    other = torch.cat([batch.image for batch in train_loader(size=64, seed=1)])
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)
    every = train_loader(size=64)._store.take(slice(None))
    for epoch in (first, second, other):
        assert sorted(x.sum().item() for x in epoch) == sorted(x.sum().item() for x in every)


def test_the_ragged_last_batch_is_dropped_or_kept():
    assert [len(b.label) for b in train_loader(size=21)] == [8, 8]
    kept = train_loader(size=21, drop_last=False)
    assert [len(b.label) for b in kept] == [8, 8, 5]
    assert len(kept) == 3


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_evaluation_shows_every_example_once_for_any_ranks(world_size):
    for size, batch in product((*range(world_size, 18), 50), (1, 2, 3, 12)):
        images = torch.arange(size, dtype=torch.uint8).view(size, 1, 1, 1)
        options = {"mean": [0.0], "std": [1 / 255], "batch_size": batch * world_size, "world_size": world_size}
        loaders = [EvalLoader(images, torch.arange(size), rank=r, **options) for r in range(world_size)]
        assert len({len(loader) for loader in loaders}) == 1
        steps = list(zip(*loaders, strict=True))
        seen = [label for step in steps for part in step for label in part.label.tolist()]
        assert seen == list(range(size))  # in order
        assert all(len(part.label) for step in steps for part in step)
        assert all(torch.equal(part.image.flatten(), part.label.float()) for step in steps for part in step)
        sizes = [sum(len(part.label) for part in step) for step in steps]
        assert all(n == batch * world_size for n in sizes[:-1])


def test_impossible_batches_are_refused():
    with pytest.raises(UserError, match=r"data\.batch_size=4000 is larger than the 1200 training examples"):
        train_loader(size=1200, batch_size=4000)
    with pytest.raises(UserError, match=r"data\.batch_size=7 does not divide by the 2 ranks; .* 6 or 8"):
        train_loader(batch_size=7, world_size=2)
    with pytest.raises(UserError, match=r"data\.eval_batch_size=2 does not divide by the 4 ranks; .* is 4"):
        EvalLoader(pixels(), torch.zeros(24), mean=MEAN, std=STD, batch_size=2, world_size=4)
    with pytest.raises(UserError, match=r"data\.drop_last=false leaves a last batch of 5 examples, which 2 ranks"):
        train_loader(size=21, drop_last=False, world_size=2)
    with pytest.raises(UserError, match="3 examples to evaluate are fewer than the 4 ranks"):
        EvalLoader(pixels(3), torch.zeros(3), mean=MEAN, std=STD, batch_size=4, world_size=4)
    with pytest.raises(UserError, match=r"data\.mixup=0\.2 and data\.cutmix=1\.0 exclude each other"):
        Augmentation(mixup=0.2, cutmix=1.0)


# Splitting


class Numbered(Images):
    """Examples whose pixels are their number, in classes of unequal size."""

    names = ("a", "b", "c")

    def read(self) -> tuple[Split, Split]:
        images = np.arange(210, dtype=np.uint8).reshape(-1, 1, 1, 1)
        labels = np.random.default_rng(5).permutation(np.repeat([0, 1, 2], [20, 60, 130]))
        labels[200:] = 0
        return Split(images[:200], labels[:200]), Split(images[200:], labels[200:])


def numbers(**options) -> dict[str, Split]:
    data = Numbered(num_classes=3, image_shape=(1, 1, 1), **options)
    data.setup()
    return data._splits


def held(split: Split) -> list[int]:
    return split.images.flatten().tolist()


@pytest.mark.parametrize("stratify", [False, True])
@pytest.mark.parametrize("val_size", [*range(1, 200, 18), 2, 20, 198, 0.01, 0.1, 0.333, 0.5, 0.99])
def test_splits_are_disjoint_complete_and_in_proportion(val_size, stratify):
    splits = numbers(val_size=val_size, stratify=stratify)
    count = val_size if isinstance(val_size, int) else round(200 * val_size)
    assert len(splits["val"].labels) == count
    assert sorted(held(splits["train"]) + held(splits["val"])) == list(range(200))
    assert held(splits["test"]) == list(range(200, 210))
    if stratify:
        val, train = (np.bincount(splits[name].labels, minlength=3) for name in ("val", "train"))
        assert np.abs(val - (val + train) * count / 200).max() <= 1


def test_the_runs_seed_moves_no_example_between_splits():
    one, other = numbers(seed=0), numbers(seed=1)
    assert all(held(one[name]) == held(other[name]) for name in one)
    assert held(one["val"]) != held(numbers(split_seed=1)["val"])


def test_limit_takes_a_part_of_the_training_examples():
    whole, half, few = (numbers(limit=limit) for limit in (None, 90, 30))
    assert (len(held(half["train"])), len(held(few["train"]))) == (90, 30)
    assert set(held(few["train"])) < set(held(half["train"])) < set(held(whole["train"]))
    assert held(few["val"]) == held(whole["val"])
    assert np.abs(np.bincount(few["train"].labels) - np.bincount(whole["train"].labels) / 6).max() < 2


def test_fingerprint_says_what_each_split_holds():
    data, same, other = (
        Numbered(num_classes=3, image_shape=(1, 1, 1), split_seed=seed, seed=seed + 3) for seed in (0, 0, 1)
    )
    for module in (data, same, other):
        module.setup()
    prints = data.fingerprint()
    assert {name: entry["size"] for name, entry in prints.items()} == {"train": 180, "val": 20, "test": 10}
    assert prints == same.fingerprint()
    assert prints["test"] == other.fingerprint()["test"]
    assert prints["train"]["sha256"] != other.fingerprint()["train"]["sha256"]
    test = data._splits["test"]
    assert prints["test"]["sha256"] == hashlib.sha256(test.images.tobytes() + test.labels.tobytes()).hexdigest()


def test_impossible_splits_are_refused():
    with pytest.raises(UserError, match=r"data\.limit=181 is larger than the 180 training examples"):
        numbers(limit=181)
    with pytest.raises(UserError, match=r"data\.val_size=200 sets 200 of 200 examples aside: 1 to 199 are possible"):
        numbers(val_size=200)
    with pytest.raises(UserError, match=r"data\.mean has 2 values, but the images have 1 channels"):
        numbers(mean=[0.1, 0.2])


# Files

FASHION = FashionMNIST.installed[0]


def mnist(kind: type[MNIST] = MNIST, **options) -> MNIST:
    return kind(**{"num_classes": 10, "image_shape": (1, 28, 28)} | options)


def digits(**options) -> Digits:
    return Digits(**{"num_classes": 10, "image_shape": (1, 8, 8), "batch_size": 64} | options)


def test_examples_are_those_of_the_split_in_order_and_unchanged():
    data = digits(crop=2, flip=True, mixup=0.5, limit=100, mean=0.0, std=1 / 255)
    data.setup()
    for name, split in data._splits.items():
        images, labels = map(torch.cat, zip(*data.examples(name), strict=True))
        assert torch.equal(images.round().byte(), torch.from_numpy(split.images))
        assert torch.equal(labels, torch.from_numpy(split.labels))
    assert sum(len(batch.label) for batch in data.examples("train")) == 100


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
    message = "data.(num_classes, image_shape) is (10, [1, 28, 28]), but the files hold (10, [1, 8, 8])"
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


# Pictures


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Ten pictures of each of two classes, of various sizes and modes, one colour each."""
    root = tmp_path / "pictures"
    for k, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(10):
            mode, suffix = (("RGB", "png"), ("L", "jpg"), ("RGBA", "PNG"))[i % 3]
            colour = {"RGB": (10 * i, 100 * k, 0), "L": 10 * i, "RGBA": (10 * i, 100 * k, 0, 255)}[mode]
            Image.new(mode, (5 + i, 9), colour).save(root / name / f"{i}.{suffix}")
    (root / "cat" / "notes.txt").write_text("not a picture")
    return root


def folder(source: Path, **options) -> ImageFolder:
    return ImageFolder(**{"train": source, "num_classes": 2, "image_shape": (3, 6, 7), "val_size": 2} | options)


def test_a_folder_for_each_class(pictures):
    data = folder(pictures)
    data.setup()
    assert data.classes == ["cat", "dog"]
    sizes = {name: split.images.shape for name, split in data._splits.items()}
    assert sizes == {"train": (14, 3, 6, 7), "val": (2, 3, 6, 7), "test": (4, 3, 6, 7)}
    assert np.bincount(data._splits["test"].labels).tolist() == [2, 2]
    images = np.concatenate([split.images for split in data._splits.values()])
    png = images[:, 1, 0, 0][images[:, 2, 0, 0] == 0]  # grey pictures have blue, all but the black one
    assert set(png.tolist()) == {0, 100}
    gone = folder(pictures / "gone")
    gone.load_state_dict(data.state_dict())
    assert gone.classes == ["cat", "dog"]  # without setup and files, as prediction needs it


def test_a_folder_of_pictures_is_one_class(pictures, monkeypatch):
    monkeypatch.chdir(pictures / "cat")
    for source in (pictures / "cat", Path()):
        data = folder(source, num_classes=1)
        data.setup()
        assert data.classes == ["cat"]
        sizes = {name: split.images.shape for name, split in data._splits.items()}
        assert sizes == {"train": (6, 3, 6, 7), "val": (2, 3, 6, 7), "test": (2, 3, 6, 7)}
        assert not np.concatenate([split.labels for split in data._splits.values()]).any()
    given = folder(pictures / "cat", test=pictures / "dog", num_classes=1, classes=["pet"])  # called what they may be
    given.setup()
    assert given.classes == ["pet"]
    assert len(given._splits["test"].labels) == 10
    with pytest.raises(UserError, match=r"data\.\(num_classes, image_shape\) is \(2, .* hold \(1, "):
        folder(pictures / "cat").setup()
    with pytest.raises(UserError, match=r"data\.test=.*dog has no folders of classes, but .* \['cat', 'dog'\]$"):
        folder(pictures, test=pictures / "dog").setup()
    Image.new("L", (5, 5)).save(pictures / "loose.png")
    with pytest.raises(UserError, match=r"holds both pictures \(loose\.png\) and folders of pictures \(cat/0\.png\)"):
        folder(pictures).setup()


def test_a_csv_of_paths_and_labels(pictures, tmp_path):
    listed = sorted(pictures.glob("*/*.png")) + sorted(pictures.glob("*/*.jpg"))
    lines = [f"{path.relative_to(tmp_path)},{10 if path.parent.name == 'dog' else 9}" for path in listed]
    (tmp_path / "all.csv").write_text("\n".join(["path,label", *lines]))
    data = folder(tmp_path / "all.csv", test=tmp_path / "all.csv", val_size=0.25)
    data.setup()
    assert data.classes == ["9", "10"]
    assert data._splits["test"].labels.tolist() == [int(path.parent.name == "dog") for path in listed]
    named = folder(tmp_path / "all.csv", classes=["10", "9"])
    named.setup()
    assert named.classes == ["10", "9"]


def test_resizing_does_what_it_says(tmp_path):
    (tmp_path / "a").mkdir()
    stripes = np.zeros((8, 16), np.uint8)
    stripes[:, 4:12] = 200
    Image.fromarray(stripes).save(tmp_path / "a" / "0.png")
    data = {
        fit: folder(tmp_path, image_shape=(1, 8, 8), resample="nearest", fit=fit, mean=0.0, std=1 / 255)
        for fit in ("stretch", "crop")
    }
    image = {fit: module.load_images([tmp_path / "a" / "0.png"])[0, 0] for fit, module in data.items()}
    assert image["crop"].unique().tolist() == [200]
    assert torch.equal(image["stretch"][0], torch.tensor([0.0, 0, 200, 200, 200, 200, 0, 0]))


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_shrinking_takes_in_every_pixel_but_with_nearest(tmp_path, fit):
    board = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)  # whose mean is 100
    Image.fromarray(board).save(tmp_path / "board.png")
    for resample in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"):
        data = folder(tmp_path, image_shape=(1, 8, 8), resample=resample, fit=fit, mean=0.0, std=1 / 255)
        pixels = data.load_images([tmp_path / "board.png"])[0, 0, 1:-1, 1:-1]
        off = (pixels - 100).abs().max()
        assert off == 100 if resample == "nearest" else off <= 2, resample


def test_corrupt_pictures_are_named_or_left_out(pictures, caplog):
    (pictures / "cat" / "broken.png").write_bytes(b"\x89PNG nonsense")
    whole = (pictures / "dog" / "0.png").read_bytes()
    (pictures / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"2 unreadable pictures: .*broken\.png .*cut\.png .*data\.on_corrupt=skip"):
        folder(pictures).setup()
    data = folder(pictures, on_corrupt="skip")
    data.setup()
    assert sum(len(split.labels) for split in data._splits.values()) == 20
    assert "left out 2 pictures" in caplog.text
    assert "broken.png" in caplog.text


def test_folders_that_cannot_be_used_are_explained(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.train=.*empty holds no PICTURE or CLASS/PICTURE with \.png"):
        folder(tmp_path / "empty").setup()
    with pytest.raises(UserError, match=r"data\.train=.*gone is neither a folder nor a CSV file"):
        folder(tmp_path / "gone").setup()
    (tmp_path / "bad.csv").write_text("file,class\na,b\n")
    with pytest.raises(UserError, match=r"has the columns \['file', 'class'\]; it needs path and label"):
        folder(tmp_path / "bad.csv").setup()
    (tmp_path / "bare.csv").write_text("path,label\na.png,cat\nb.png\n")
    with pytest.raises(UserError, match=r"bare\.csv gives b\.png no label"):
        folder(tmp_path / "bare.csv").setup()
    (tmp_path / "none.csv").write_text("path,label\n")
    with pytest.raises(UserError, match=r"none\.csv lists no picture"):
        folder(tmp_path / "none.csv").setup()
    (tmp_path / "only.csv").write_text("path,label\nnowhere.png,a\n")
    with pytest.raises(UserError, match=r"only\.csv has no picture that can be read"):
        folder(tmp_path / "only.csv", on_corrupt="skip").setup()
    with pytest.raises(UserError, match=r"has the class 'dog', which is none of \['cat'\]"):
        folder(pictures, classes=["cat"]).setup()
    with pytest.raises(UserError, match=r"data\.image_shape=\[2, 6, 7\] has 2 channels; pictures have 1 or 3"):
        folder(pictures, image_shape=(2, 6, 7)).load_images([pictures / "cat" / "0.png"])


def test_load_images_gives_what_batches_hold(pictures, tmp_path):
    data = digits(mean=0.3, std=0.4)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    images = data._splits["test"].images
    np.save(tmp_path / "many.npy", images[:3])
    np.save(tmp_path / "one.npy", images[3])
    np.save(tmp_path / "grey.npy", images[4, 0])
    Image.fromarray(images[5, 0]).save(tmp_path / "five.png")
    Image.fromarray(images[6, 0]).convert("RGB").resize((16, 16), Image.Resampling.BOX).save(tmp_path / "big.png")
    files = [tmp_path / name for name in ("many.npy", "one.npy", "grey.npy", "five.png")]
    assert torch.equal(digits(mean=0.3, std=0.4).load_images(files), batch.image[:6])
    assert data.load_images([str(tmp_path / "big.png")]).shape == (1, 1, 8, 8)


def test_load_images_explains_what_it_cannot_load(tmp_path):
    data = digits()
    (tmp_path / "text.png").write_text("no")
    (tmp_path / "text.npy").write_text("no")
    np.save(tmp_path / "float.npy", np.zeros((1, 8, 8)))
    np.save(tmp_path / "size.npy", np.zeros((1, 9, 9), np.uint8))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name, message in {
        "text.png": "text.png is not a picture that can be read",
        "text.npy": "text.npy is not an array that can be read",
        "object.npy": "object.npy is not an array that can be read",
        "float.npy": "float.npy holds float64; save pixels as uint8, 0 to 255",
        "size.npy": r"size.npy holds an array \[1, 9, 9\]; the images here are \[1, 8, 8\]",
        "gone.png": "gone.png does not exist",
        "gone.npy": "gone.npy does not exist",
    }.items():
        with pytest.raises(UserError, match=message):
            data.load_images([tmp_path / name])
    with pytest.raises(UserError, match="there are no files to load"):
        data.load_images([])


# Configuration


IMAGE_CHOICES = [path.stem for path in choices(CONF / "data") if "image_shape" in path.read_text()]


@pytest.mark.parametrize("choice", IMAGE_CHOICES)
def test_each_choice_states_the_facts_of_its_class(choice, pictures):
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
