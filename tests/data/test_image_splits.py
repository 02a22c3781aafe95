"""Splits are disjoint, complete and in proportion; neither the seed of a run nor a limit moves an example between them."""

import hashlib

import numpy as np
import pytest
import torch

from leyden.data.images.images import Images, Split
from leyden.errors import UserError
from support.images import digits


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


def test_examples_are_those_of_the_split_in_order_and_unchanged():
    data = digits(crop=2, flip=True, mixup=0.5, limit=100, mean=0.0, std=1 / 255)
    data.setup()
    for name, split in data._splits.items():
        images, labels = map(torch.cat, zip(*data.examples(name), strict=True))
        assert torch.equal(images.round().byte(), torch.from_numpy(split.images))
        assert torch.equal(labels, torch.from_numpy(split.labels))
    assert sum(len(batch.label) for batch in data.examples("train")) == 100
