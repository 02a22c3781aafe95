"""How near generated pictures are to real ones, measured on their features: tensors (N, F), a row for each picture.

All is in float64, block by block, and without randomness. These figures compare only over the same features, reference
and number of pictures: with fewer pictures FID is higher (Chong & Forsyth 2020), below as many as features much so.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leyden.errors import UserError

NAMES = ("fid", "kid", "precision", "recall", "density", "coverage", "modes")  # what `measure` returns
ROWS = 128  # of a block of pairs: one that stays in a core's cache
ROUNDING = 1e-12  # of a squared distance, over the largest squared length


class Reference(NamedTuple):
    """What is kept of the features of real pictures."""

    mean: Tensor  # (F,) float64, over all
    cov: Tensor  # (F, F) float64, over all
    features: Tensor  # (M, F) float32, of some
    size: int  # how many pictures there were


def summarize(batches: Iterable[Tensor], num_kept: int) -> Reference:
    """Return the reference of features that come in batches (B, F), of which `num_kept` pictures' are kept.

    These are drawn by position, so that any split of the same pictures into batches keeps the same ones.

    Raises:
        UserError: when there are fewer than two pictures.
    """
    rng = np.random.default_rng(0)
    size, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    kept, key = torch.zeros(0), torch.zeros(0)
    for batch in batches:
        x, count = _float64(batch), len(batch)
        centre = x.mean(0)
        away, own, total = centre - mean.to(x), x - centre, size + count
        # the sum of squares about the mean, exact wherever the mean lies (Chan et al. 1983, equation 2.1)
        scatter = scatter.to(x) + own.T @ own + away.outer(away) * (size * count / total)
        mean, size = mean.to(x) + away * (count / total), total
        key = torch.cat([key, torch.from_numpy(rng.random(count))])
        kept = torch.cat([kept.reshape(-1, x.shape[1]), batch.float().cpu()])
        lowest = key.argsort()[:num_kept].sort().values
        kept, key = kept[lowest], key[lowest]
    if size < 2:
        raise UserError(f"there are too few real pictures to compare with: {size}")
    return Reference(mean.cpu(), scatter.cpu() / (size - 1), kept, size)


def measure(reference: Reference, features: Tensor, proba: Tensor | None = None) -> dict[str, float]:
    """Return the figures `NAMES` of generated pictures with features (N, F); `modes` only with `proba` (N, K).

    FID compares with all real pictures, the others with those whose features are kept. `modes` counts the classes that
    at least a tenth as many pictures are taken for as when all classes are equal. Features that are not finite, those
    of a generator that diverged, make every figure NaN.

    Raises:
        UserError: when there are too few pictures, real or generated, to have the neighbours asked for.
    """
    names = NAMES if proba is not None else NAMES[:-1]
    if not features.isfinite().all():
        return dict.fromkeys(names, float("nan"))
    fake = _float64(features)
    real = reference.features.to(fake)
    precision, recall = precision_recall(real, fake)
    density, coverage = density_coverage(real, fake)
    values = {
        "fid": frechet_distance(reference.mean, reference.cov, fake.mean(0), fake.T.cov()),
        "kid": kernel_distance(real, fake),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }
    if proba is not None:
        share = class_shares(proba)
        values["modes"] = float((share >= 0.1 / len(share)).sum())
    return values


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Return FID: the squared Fréchet distance of two Gaussians (Heusel et al. 2017, equation 6).

    The trace of (C1 C2)^(1/2) is the nuclear norm of C1^(1/2) C2^(1/2), which singular covariances have too.
    """
    mean2, cov2 = _float64(mean2), _float64(cov2)
    mean1, cov1 = mean1.to(mean2), cov1.to(cov2)
    (value1, vector1), (value2, vector2) = torch.linalg.eigh(cov1), torch.linalg.eigh(cov2)
    root1, root2 = value1.clamp(min=0).sqrt(), value2.clamp(min=0).sqrt()  # (F,)
    product = root1[:, None] * (vector1.T @ vector2) * root2  # (F, F), from one's eigenvectors to the other's
    spread = cov1.trace() + cov2.trace() - 2 * torch.linalg.svdvals(product).sum()
    return float((mean1 - mean2).square().sum() + spread.clamp(min=0))


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Return KID: the unbiased squared MMD with the kernel (x y / F + 1)^3 (Binkowski et al. 2018, section 4).

    Over all pairs, not as often over random subsets. For equal distributions it is zero in the mean: at times below.
    """
    real, fake = _float64(real), _float64(fake)
    return _kernel_mean(real) + _kernel_mean(fake) - 2 * float(_kernel_sum(real, fake)) / (len(real) * len(fake))


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Return improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2).

    The shares of fake pictures no farther from some real one than its k-th neighbour, and the other way round.
    """
    real, fake = _float64(real), _float64(fake)
    slack = _slack(real, fake)
    real_radius, fake_radius = _radii(real, k) + slack, _radii(fake, k) + slack
    precise, recalled = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for distance, radius in zip(_distances(fake, real), fake_radius.split(ROWS), strict=True):  # (B, M), (B,)
        precise.append((distance <= real_radius).any(1))
        recalled |= (distance <= radius[:, None]).any(0)
    return _mean(torch.cat(precise)), _mean(recalled)


def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """Return density and coverage (Naeem et al. 2020, equations 4 and 5).

    Density is how many real pictures a fake one is nearer to than their k-th neighbour, over k; coverage, the share of
    real pictures that have a fake one so near.
    """
    real, fake = _float64(real), _float64(fake)
    radii = _radii(real, k) - _slack(real, fake)
    count = torch.zeros(len(real), dtype=torch.long, device=real.device)
    for rows, distance in zip(torch.arange(len(real)).split(ROWS), _distances(real, fake), strict=True):
        count[rows] = (distance < radii[rows, None]).sum(1)
    return float(count.sum()) / (k * len(fake)), _mean(count > 0)


def class_shares(proba: Tensor) -> Tensor:
    """Return the share (K,) of pictures that are taken for each class, from probabilities (N, K)."""
    return proba.argmax(1).bincount(minlength=proba.shape[1]) / len(proba)


def _kernel_mean(x: Tensor) -> float:
    """Return the mean kernel of the pairs of two different rows."""
    own = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
    return float(_kernel_sum(x, x) - own) / (len(x) * (len(x) - 1))


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    blocks = (rows @ y.T for rows in x.split(ROWS))  # (B, M)
    return torch.stack([block.div_(x.shape[1]).add_(1).pow_(3).sum() for block in blocks]).sum()


def _radii(x: Tensor, k: int) -> Tensor:
    """Return the squared distance (N,) of each row to the k-th nearest of the others."""
    if len(x) <= k:
        raise UserError(f"{len(x)} pictures are too few to measure: each needs {k} others beside it")
    return torch.cat([distance.topk(k + 1, largest=False).values[:, -1] for distance in _distances(x, x)])


def _distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Yield the squared distances (B, M) of blocks of x's rows to all rows of y."""
    length = y.square().sum(1)
    for rows in x.split(ROWS):
        yield torch.addmm(length, rows, y.T, alpha=-2).add_(rows.square().sum(1, keepdim=True))


def _slack(x: Tensor, y: Tensor) -> Tensor:
    """Return what rounding may make of a squared distance, so that equal ones compare as equal."""
    return ROUNDING * torch.maximum(x.square().sum(1).max(), y.square().sum(1).max())


def _mean(hit: Tensor) -> float:
    return float(hit.double().mean())


def _float64(x: Tensor) -> Tensor:
    """Return x in double precision, on the CPU if its device has none."""
    return (x.cpu() if x.device.type == "mps" else x).double()
