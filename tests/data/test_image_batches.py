"""A batch of images is a pure function of (seed, epoch, index) for any number of ranks, and evaluation counts every image once."""

from itertools import product

import numpy as np
import pytest
import torch

from leyden.batch import ImageBatch
from leyden.data.images.augmentation import Augmentation, draw_plan
from leyden.data.images.loader import ImageEvalLoader, ImageStore, ImageTrainLoader
from leyden.data.sampling import draw_probabilities
from leyden.errors import UserError

MEAN, STD = [0.3, 0.4, 0.5], [0.2, 0.3, 0.4]
EVERYTHING = Augmentation(crop=2, crop_mode="reflect", flip=True, cutout=3, mixup=0.4)
AUGMENTATIONS = [Augmentation(), EVERYTHING, Augmentation(crop=1), Augmentation(flip=True, cutmix=1.0)]


def pixels(size: int = 24, shape: tuple[int, int, int] = (3, 6, 5)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(256, size=(size, *shape), dtype=np.uint8))


def train_loader(size: int = 24, **options) -> ImageTrainLoader:
    labels = torch.arange(size) % 4
    options = {"mean": MEAN, "std": STD, "num_classes": 4, "batch_size": 8} | options
    return ImageTrainLoader(pixels(size), labels, **options)


def equal(a: ImageBatch, b: ImageBatch) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.label, b.label)


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


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_classes_are_drawn_as_often_as_sampling_says_on_any_number_of_ranks(augmentation):
    labels = torch.tensor([0] * 900 + [1] * 100)
    for sampling, share in (("balanced", 1 / 2), ("sqrt", 1 / 4)):
        probabilities = draw_probabilities(labels.numpy(), sampling)
        options = {"mean": MEAN, "std": STD, "num_classes": 2, "batch_size": 100, "augmentation": augmentation}
        pieces = [
            ImageTrainLoader(pixels(1000), labels, **options, probabilities=probabilities, rank=rank, world_size=size)
            for rank, size in ((0, 1), (0, 2), (1, 2))
        ]
        whole, first, second = ([loader.batch(3, index) for index in range(10)] for loader in pieces)
        for a, *parts in zip(whole, first, second, strict=True):
            assert equal(a, ImageBatch(*map(torch.cat, zip(*parts, strict=True))))
        assert not equal(whole[0], pieces[0].batch(4, 0))
        label = torch.cat([batch.label for batch in whole])
        drawn = label.argmax(1) if label.ndim == 2 else label
        assert drawn.double().mean().item() == pytest.approx(share, abs=0.06)  # four deviations of 1000 draws
    assert draw_probabilities(labels.numpy(), "uniform") is None


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
        loaders = [ImageEvalLoader(images, torch.arange(size), rank=r, **options) for r in range(world_size)]
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
        ImageEvalLoader(pixels(), torch.zeros(24), mean=MEAN, std=STD, batch_size=2, world_size=4)
    with pytest.raises(UserError, match=r"data\.drop_last=false leaves a last batch of 5 examples, which 2 ranks"):
        train_loader(size=21, drop_last=False, world_size=2)
    with pytest.raises(UserError, match="3 examples to evaluate are fewer than the 4 ranks"):
        ImageEvalLoader(pixels(3), torch.zeros(3), mean=MEAN, std=STD, batch_size=4, world_size=4)
    with pytest.raises(UserError, match=r"data\.mixup=0\.2 and data\.cutmix=1\.0 exclude each other"):
        Augmentation(mixup=0.2, cutmix=1.0)
