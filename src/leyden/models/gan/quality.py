"""The quality of generated pictures: distances between their features and those of real ones, and their diversity."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from leyden.errors import UserError
from leyden.metrics.generation import Reference, class_shares, measure
from leyden.models.model import gather_objects


class Quality(nn.Module):
    """Compares generated with real pictures, both (B, C, H, W) in [0, 1].

    `feature` is the network that computes their features, which a file of conf/feature/ describes; without it, measures
    that need features are left out. `num_samples` is the number of generated pictures over all ranks.
    """

    def __init__(self, feature: Any, num_samples: int) -> None:
        super().__init__()
        if feature is not None and num_samples <= feature.num_features:
            raise UserError(
                f"model.num_samples={num_samples} pictures do not span the {feature.num_features} features: FID would "
                f"be far too high; set it to {feature.num_features + 1} or more, 10000 as is usual"
            )
        self.feature = feature
        self.num_samples = num_samples
        self.real_variation, self.fake_variation = Variation(), Variation()
        self._real_outputs: list[tuple[Tensor, Tensor | None]] = []  # features and probabilities
        self._fake_outputs: list[tuple[Tensor, Tensor | None]] = []
        self._reference: Reference | None = None

    def reset(self) -> None:
        """Remove all pictures but the reference."""
        self.real_variation.reset()
        self.fake_variation.reset()
        self._real_outputs, self._fake_outputs = [], []

    def add_real(self, image: Tensor, keep_features: bool) -> None:
        """Add real pictures; with `keep_features`, `scores` measures them, too."""
        self.real_variation.update(image)
        if keep_features and self.feature is not None:
            self._real_outputs.append(self.feature(image))

    def add_fake(self, image: Tensor) -> None:
        """Add generated pictures."""
        self.fake_variation.update(image)
        if self.feature is not None:
            self._fake_outputs.append(self.feature(image))

    def set_reference(self, images: Callable[[], Iterable[Tensor]], digest: Callable[[], str]) -> None:
        """Set the real pictures to compare with; their features are computed once for each `digest`."""
        if self._reference is None and self.feature is not None:
            self._reference = self.feature.reference(images(), digest(), self.num_samples)

    def diversity(self) -> float:
        """Return the deviation of generated pictures over that of real ones; it should be near 1."""
        return float((self.fake_variation.compute() / self.real_variation.compute()).sqrt())

    def scores(self) -> dict[str, float]:
        """Return the values of `leyden.metrics.generation.measure` for generated pictures, with the feature's suffix.

        The names of the values of real pictures end in `_real`. A perfect generator would reach these values with the
        same number of pictures; with fewer pictures, FID and the noise of KID are higher.
        """
        return self._measure(self._fake_outputs, "") | self._measure(self._real_outputs, "_real")

    def class_shares(self) -> tuple[Tensor, Tensor] | None:
        """Return the shares (K,) of generated and of real pictures that are classified as each class."""
        fake, real = (_gather([proba for _, proba in outputs]) for outputs in (self._fake_outputs, self._real_outputs))
        return None if fake is None or real is None else (class_shares(fake), class_shares(real))

    def _measure(self, outputs: list[tuple[Tensor, Tensor | None]], ending: str) -> dict[str, float]:
        features, proba = (_gather([output[i] for output in outputs]) for i in range(2))
        if features is None or self._reference is None:
            return {}
        values = measure(self._reference, features, proba)
        return {f"{name}{self.feature.suffix}{ending}": value for name, value in values.items()}


class Variation(Metric):
    """The mean variance of a pixel over pictures (B, C, H, W)."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, image: Tensor) -> None:
        """Add pictures (B, C, H, W)."""
        # if pictures hardly vary, float32 would round away the difference of the two sums; MPS has no float64
        image = image.float() if image.device.type == "mps" else image.double()
        self.total = self.total + image.sum(0)
        self.squares = self.squares + image.square().sum(0)
        self.count = self.count + len(image)

    def compute(self) -> Tensor:
        """Return the variance."""
        return (self.squares / self.count - (self.total / self.count).square()).mean()


def _gather(batches: list[Any]) -> Tensor | None:
    """Return the batches of all ranks, which may differ in number, as one tensor, or None if there are none."""
    if not batches or batches[0] is None:
        return None
    local = torch.cat(batches)
    return torch.cat(gather_objects(local.cpu())).to(local)
