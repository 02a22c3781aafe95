"""Distances between generated and real pictures, measured on their features: tensors (N, F), a row for each picture.

Everything is computed in float64, block by block, and without randomness. These metrics can only be compared over the
same features, reference and number of pictures: with fewer pictures FID is higher (Chong & Forsyth 2020), and much
higher with fewer pictures than features.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leyden.errors import UserError

NAMES = ("fid", "kid", "precision", "recall", "density", "coverage", "modes")  # the metrics that `measure` returns
NEIGHBOURS = (3, 5)  # k for precision and recall, and k for density and coverage
ROWS = 64  # rows in a block of pairs, so that a block fits into a core's cache
ROUNDING = 1e-12  # relative rounding error of a squared distance, over the largest squared length


class Cloud(NamedTuple):
    """Features of pictures, with statistics of all pairs of two different pictures."""

    features: Tensor  # (N, F) float64
    radii: Tensor  # (N, K) float64, squared distances to the k-th nearest neighbour, for K values of k
    kernel: float  # the mean kernel over pairs


class Reference(NamedTuple):
    """The statistics of the features of real pictures."""

    mean: Tensor  # (F,) float64, of all pictures
    cov: Tensor  # (F, F) float64, of all pictures
    features: Tensor  # (M, F) float32, of the M pictures whose features are kept
    radii: Tensor  # (M, 2) float64, the radii of these M pictures for `NEIGHBOURS`
    kernel: float  # the mean kernel over pairs of these M pictures
    size: int  # the number of all pictures


def summarize(batches: Iterable[Tensor], num_kept: int) -> Reference:
    """Summarize features, which come in batches (B, F), as a reference that holds the features of `num_kept` pictures.

    These pictures are drawn by their positions, so they are the same for any division into batches.

    Raises:
        UserError: if there are fewer than two pictures, or too few are kept for `NEIGHBOURS`.
    """
    rng = np.random.default_rng(0)
    size, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    subset, keys = torch.zeros(0), torch.zeros(0)
    for batch in batches:
        x, count = _float64(batch), len(batch)
        centre = x.mean(0)
        shift, deviations, total = centre - mean.to(x), x - centre, size + count
        # the sum of squares about the mean, exact wherever the mean lies (Chan et al. 1983, equation 2.1)
        scatter = scatter.to(x) + deviations.T @ deviations + shift.outer(shift) * (size * count / total)
        mean, size = mean.to(x) + shift * (count / total), total
        keys = torch.cat([keys, torch.from_numpy(rng.random(count))])
        subset = torch.cat([subset.reshape(-1, x.shape[1]), batch.float().cpu()])
        kept_indices = keys.argsort()[:num_kept].sort().values
        subset, keys = subset[kept_indices], keys[kept_indices]
    if size < 2:
        raise UserError(f"there are too few real pictures to compare with: {size}")
    real = build_cloud(subset.to(scatter), *NEIGHBOURS)
    return Reference(mean.cpu(), scatter.cpu() / (size - 1), subset, real.radii.cpu(), real.kernel, size)


def measure(reference: Reference, features: Tensor, proba: Tensor | None = None) -> dict[str, float]:
    """Return the metrics `NAMES` of generated pictures with features (N, F); `modes` only with `proba` (N, K).

    FID compares with all real pictures, the other metrics with those whose features are kept. `modes` counts the
    classes that are predicted for at least a tenth of the pictures that equal shares would give. Every metric is NaN if
    a feature is not finite, as when the generator has diverged.

    Raises:
        UserError: if there are too few generated pictures for `NEIGHBOURS`.
    """
    names = NAMES if proba is not None else NAMES[:-1]
    if not features.isfinite().all():
        return dict.fromkeys(names, float("nan"))
    fake = build_cloud(features, NEIGHBOURS[0])
    real = Cloud(reference.features.to(fake.features), reference.radii.to(fake.features), reference.kernel)
    mean, cov = fake.features.mean(0), fake.features.T.cov()
    values = {"fid": frechet_distance(reference.mean, reference.cov, mean, cov)} | compare(real, fake, NEIGHBOURS[1])
    if proba is not None:
        share = class_shares(proba)
        values["modes"] = float((share >= 0.1 / len(share)).sum())
    return values


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Return FID: the squared Fréchet distance of two Gaussians (Heusel et al. 2017, equation 6).

    The trace of (C1 C2)^(1/2) is the nuclear norm of C1^(1/2) C2^(1/2), which exists for singular covariances, too.
    """
    mean2, cov2 = _float64(mean2), _float64(cov2)
    mean1, cov1 = mean1.to(mean2), cov1.to(cov2)
    (value1, vector1), (value2, vector2) = torch.linalg.eigh(cov1), torch.linalg.eigh(cov2)
    root1, root2 = value1.clamp(min=0).sqrt(), value2.clamp(min=0).sqrt()  # (F,)
    product = root1[:, None] * (vector1.T @ vector2) * root2  # (F, F), from the eigenvectors of C2 to those of C1
    spread = cov1.trace() + cov2.trace() - 2 * torch.linalg.svdvals(product).sum()
    return float((mean1 - mean2).square().sum() + spread.clamp(min=0))


def build_cloud(x: Tensor, *k: int) -> Cloud:
    """Return the features (N, F) as a cloud, with a column of radii for each k.

    Raises:
        UserError: if there are no more pictures than the largest k.
    """
    x, max_k = _float64(x), max(k)
    if len(x) <= max_k:
        raise UserError(f"{len(x)} pictures are too few to measure: each needs {max_k} others beside it")
    radii = []
    total = -(x.square().sum(1) / x.shape[1] + 1).pow(3).sum()  # subtracts the pairs of a picture with itself
    for distance, kernel in _pairs(x, x):
        radii.append(distance.topk(max_k + 1, largest=False).values[:, k])  # the nearest of all is the picture itself
        total += kernel.sum()
    return Cloud(x, torch.cat(radii), float(total) / (len(x) * (len(x) - 1)))


def compare(real: Cloud, fake: Cloud, k: int) -> dict[str, float]:
    """Return the metrics that are computed from the pairs of a real and a generated picture.

    - kid: the unbiased squared MMD with the kernel (x y / F + 1)^3 (Binkowski et al. 2018, section 4), over all pairs
      instead of random subsets. For equal distributions its expectation is zero, so it may be negative.
    - precision: the share of fake pictures inside the ball of a real one, whose radius is its first; recall: the share
      of real pictures inside the ball of a fake one (Kynkäänniemi et al. 2019, equations 1 and 2).
    - density: the mean number of real balls of the second radius that contain a fake picture, divided by k; coverage:
      the share of these balls that contain a fake picture (Naeem et al. 2020, equations 4 and 5).
    """
    lengths = [cloud.features.square().sum(1).max() for cloud in (real, fake)]
    tolerance = ROUNDING * torch.maximum(*lengths)  # squared distances within it count as equal
    # the distance of each picture to the nearest ball of the other kind, negative inside a ball
    fake_margins, real_margins = torch.full_like(tolerance, torch.inf), []
    total, count = torch.zeros_like(tolerance), []
    blocks = zip(_pairs(real.features, fake.features), real.radii.split(ROWS), strict=True)
    for (distance, kernel), radii in blocks:  # (B, N) twice, (B, 2)
        total += kernel.sum()
        fake_margins = torch.minimum(fake_margins, (distance - radii[:, :1]).amin(0))
        real_margins.append((distance - fake.radii[:, 0]).amin(1))
        count.append((distance < radii[:, 1:] - tolerance).sum(1))
    counts_near = torch.cat(count)  # (M,)
    return {
        "kid": real.kernel + fake.kernel - 2 * float(total) / (len(counts_near) * len(fake_margins)),
        "precision": _mean(fake_margins <= tolerance),
        "recall": _mean(torch.cat(real_margins) <= tolerance),
        "density": float(counts_near.sum()) / (k * len(fake_margins)),
        "coverage": _mean(counts_near > 0),
    }


def class_shares(proba: Tensor) -> Tensor:
    """Return the share (K,) of pictures for which each class is the likeliest, from probabilities (N, K)."""
    return proba.argmax(1).bincount(minlength=proba.shape[1]) / len(proba)


def _pairs(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the squared distances (B, M) and the kernels (B, M) of blocks of x's rows with all rows of y."""
    length = y.square().sum(1)
    for rows in x.split(ROWS):
        product = rows @ y.T
        distance = torch.sub(length, product, alpha=2).add_(rows.square().sum(1, keepdim=True))
        yield distance, product.div_(x.shape[1]).add_(1).pow_(3)


def _mean(mask: Tensor) -> float:
    return float(mask.double().mean())


def _float64(x: Tensor) -> Tensor:
    """Convert to double precision, on the CPU if the device does not support it."""
    return (x.cpu() if x.device.type == "mps" else x).double()
