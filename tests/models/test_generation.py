"""The metrics of generated pictures equal plain implementations of the papers' formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import linalg
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from leyden.errors import UserError
from leyden.metrics import generation
from leyden.metrics.generation import NAMES, build_cloud, class_shares, compare, frechet_distance, measure, summarize


def normal(seed: int, rows: int, width: int, scale: float = 1.0) -> Tensor:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((width, width)) / width**0.5
    return torch.from_numpy(rng.standard_normal((rows, width)) @ mix * scale)


def fid(x: Tensor, y: Tensor) -> float:
    return frechet_distance(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())


def pairs(real: Tensor, fake: Tensor, k: int = 3, k_density: int = 5) -> dict[str, float]:
    return compare(build_cloud(real, k, k_density), build_cloud(fake, k), k_density)


def points(max_rows: int = 12):
    """A few points on a small grid: many are equal, and many distances are."""
    shape = st.tuples(st.integers(6, max_rows), st.just(2))
    return arrays(np.float64, shape, elements=st.integers(-3, 3)).map(torch.from_numpy)


# Fréchet distance


@pytest.mark.parametrize(("width", "shift"), [(3, 0.0), (40, 0.5)])
def test_fid_equals_the_square_root_of_a_matrix_product(width: int, shift: float):
    x, y = normal(0, 500, width), normal(1, 400, width, 1.5) + shift
    root = linalg.sqrtm(np.cov(x.numpy().T) @ np.cov(y.numpy().T)).real
    trace = np.trace(np.cov(x.numpy().T) + np.cov(y.numpy().T) - 2 * root)
    assert fid(x, y) == pytest.approx(float(((x.mean(0) - y.mean(0)) ** 2).sum() + trace), rel=1e-9)


def test_fid_equals_that_of_torchmetrics():
    class Rows(nn.Module):
        num_features = 8

        def forward(self, x: Tensor) -> Tensor:
            return x

    x, y = normal(0, 300, 8), normal(1, 200, 8) + 0.3
    theirs = FrechetInceptionDistance(feature=Rows(), normalize=True).set_dtype(torch.float64)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    assert fid(x, y) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_fid_of_fewer_pictures_than_features():
    x, y = normal(0, 7, 30), normal(1, 9, 30)
    centred = (x - x.mean(0)) @ (y - y.mean(0)).T / (6 * 8) ** 0.5  # has the nuclear norm that the roots' product has
    trace = x.T.cov().trace() + y.T.cov().trace() - 2 * torch.linalg.svdvals(centred).sum()
    assert fid(x, y) == pytest.approx(float((x.mean(0) - y.mean(0)).square().sum() + trace), rel=1e-6)


def test_fid_of_covariances_that_are_singular():
    a, b = torch.tensor([4.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 9.0, 0.0, 0.0])
    zero = torch.zeros(4)
    exact = pytest.approx(1 + 9 + 0 + 1, rel=1e-12)  # eigenvalues are known up to rounding
    assert frechet_distance(zero, a.diag(), zero, b.diag()) == exact
    assert frechet_distance(zero, zero.diag(), zero + 2, zero.diag()) == 16


@settings(max_examples=30, deadline=None)
@given(x=points(), y=points(), shift=st.integers(-1000, 1000), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_fid_is_a_distance_that_a_shift_leaves_alone(x: Tensor, y: Tensor, shift: int, scale: float):
    x, y = x * scale, y * scale
    near = pytest.approx(fid(x, y), rel=1e-6, abs=1e-6 * scale**2)
    assert fid(y, x) == near
    assert fid(x + shift * scale, y + shift * scale) == near
    assert fid(x.flip(0), y) == near
    assert fid(x, y) >= 0
    assert fid(x, x) <= 1e-12 * scale**2


# Kernel distance, and what neighbours tell


def naive_kid(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    same = [np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    return sum(same) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def naive_radii(x: Tensor, k: int) -> list[float]:
    return [sorted(float((a - b).square().sum()) for b in x)[k] for a in x]


def naive_neighbours(real: Tensor, fake: Tensor, k: int, k_density: int) -> dict[str, float]:
    """Precision and recall of k neighbours, density and coverage of others, as the papers write them."""
    around_real, around_fake, wide = naive_radii(real, k), naive_radii(fake, k), naive_radii(real, k_density)
    far = [[float((a - b).square().sum()) for b in fake] for a in real]
    n, m = len(real), len(fake)
    return {
        "precision": np.mean([any(far[i][j] <= around_real[i] for i in range(n)) for j in range(m)]),
        "recall": np.mean([any(far[i][j] <= around_fake[j] for j in range(m)) for i in range(n)]),
        "density": sum(far[i][j] < wide[i] for i in range(n) for j in range(m)) / (k_density * m),
        "coverage": np.mean([any(far[i][j] < wide[i] for j in range(m)) for i in range(n)]),
    }


def test_kid_equals_a_double_loop():
    x, y = normal(0, 150, 5), normal(1, 140, 5) + 0.5  # more rows than a block has
    assert pairs(x, y)["kid"] == pytest.approx(naive_kid(x, y), rel=1e-10)


def test_kid_of_one_distribution_is_zero_in_the_mean():
    values = [pairs(*torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(i)))["kid"] for i in range(200)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5


@settings(max_examples=60, deadline=None)
@given(real=points(), fake=points(), k=st.integers(1, 5), k_density=st.integers(1, 5))
def test_neighbours_are_counted_as_in_the_papers(real: Tensor, fake: Tensor, k: int, k_density: int):
    def shares(real: Tensor, fake: Tensor) -> dict[str, float]:
        values = pairs(real, fake, k, k_density)
        del values["kid"]
        return values

    found = shares(real, fake)
    assert found == pytest.approx(naive_neighbours(real, fake, k, k_density), abs=1e-12)
    assert shares(real + 0.1, fake + 0.1) == found, "rounding, which the shift brings, decides nothing"
    assert shares(real.flip(0), fake) == shares(real, fake.flip(0)) == found
    other = shares(fake, real)
    assert (other["precision"], other["recall"]) == (found["recall"], found["precision"])


def test_a_whole_measure_in_many_blocks():
    real, fake = normal(0, 150, 4).float(), normal(1, 140, 4).float()  # as they are kept
    found, (x, y) = measure(summarize([real], 300), fake), (real.double(), fake.double())
    naive = {"fid": fid(x, y), "kid": naive_kid(x, y), **naive_neighbours(x, y, 3, 5)}
    assert found == pytest.approx(naive, rel=1e-9, abs=1e-12)


# All at once


def test_a_reference_is_that_of_all_pictures_however_they_come():
    x = (normal(0, 1000, 6) + 1e4).float()
    a, b = summarize(x.split(1000), 100), summarize(x.split(17), 100)
    for found in (a, b):
        assert found.size == 1000
        np.testing.assert_allclose(found.mean, x.double().mean(0), rtol=1e-13)  # 1,000 numbers, each rounded to 1e-16
        np.testing.assert_allclose(found.cov, np.cov(x.double().T), rtol=1e-9, atol=1e-12)
    assert torch.equal(a.features, b.features)
    assert torch.equal(a.radii, b.radii)
    assert a.kernel == b.kernel
    np.testing.assert_allclose(a.radii, np.transpose([naive_radii(a.features.double(), k) for k in (3, 5)]), rtol=1e-4)
    where = [int((x == row).all(1).nonzero()) for row in a.features]
    assert len(set(where)) == 100
    assert where == sorted(where)
    assert 300 < np.mean(where) < 700
    assert summarize([x], 2000).features.equal(x)


def test_measure_returns_all_figures_and_the_same_ones_again():
    x, y = normal(0, 400, 6).float(), normal(1, 300, 6).float()
    known = summarize([x], 200)
    proba = torch.eye(10)[torch.tensor([0] * 200 + [1] * 97 + [2] * 3)]
    values = measure(known, y, proba)
    assert tuple(values) == NAMES
    assert values["modes"] == 3  # 3 of 300 is a tenth of a tenth
    assert class_shares(proba)[:4].tolist() == pytest.approx([200 / 300, 97 / 300, 0.01, 0])
    assert measure(known, y, torch.eye(10)[torch.tensor([0] * 298 + [2] * 2)])["modes"] == 1
    assert measure(known, y) == {name: values[name] for name in NAMES[:-1]}
    assert values["fid"] == pytest.approx(fid(x.double(), y.double()))
    assert values["kid"] == pairs(known.features, y)["kid"]


def test_real_pictures_are_told_from_others():
    x = normal(0, 1200, 8).float()  # as they are kept
    known = summarize([x[:600]], 600)
    same = measure(known, x[:600])
    assert same.pop("kid") < 0  # unbiased: the pairs of a picture with itself are in one term alone
    assert same == pytest.approx({"fid": 0, "precision": 1, "recall": 1, "density": 1, "coverage": 1}, abs=1e-9)
    real, collapsed, far = (measure(known, y) for y in (x[600:], x[600:601].expand(600, -1), x[600:] + 9))
    assert real["fid"] < 0.2 < collapsed["fid"] < far["fid"]
    assert real["coverage"] > 0.9 > 0.1 > collapsed["coverage"] > far["coverage"] == far["density"] == 0
    assert real["recall"] > 0.7 > collapsed["recall"] == far["recall"] == 0


def test_what_cannot_be_measured():
    known = summarize([normal(0, 50, 4)], 50)
    broken = normal(1, 50, 4)
    broken[3, 2] = float("inf")
    assert all(np.isnan(value) for value in measure(known, broken).values())
    with pytest.raises(UserError, match="3 pictures are too few to measure: each needs 3 others"):
        measure(known, normal(1, 3, 4))
    with pytest.raises(UserError, match="5 pictures are too few to measure: each needs 5 others"):
        summarize([normal(0, 50, 4)], 5)
    with pytest.raises(UserError, match="too few real pictures to compare with: 1"):
        summarize([torch.zeros(1, 4)], 10)


def test_rows_of_a_block_change_nothing(monkeypatch: pytest.MonkeyPatch):
    known, y = summarize([normal(0, 100, 5)], 90), normal(1, 80, 5)
    values = measure(known, y)
    monkeypatch.setattr(generation, "ROWS", 7)
    assert measure(known, y) == pytest.approx(values, rel=1e-12)
