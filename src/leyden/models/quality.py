"""What is measured of the pictures that a model makes: their features against those of real ones, and how they vary."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from leyden.errors import UserError
from leyden.metrics.generation import Reference, class_shares, measure


class Quality(nn.Module):
    """Looks at real and generated pictures (B, C, H, W) in [0, 1], and says how near these come.

    `feature` is the network that sees them, one of conf/feature or None; `num_samples` is how many generated pictures
    there will be, over all ranks.
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
        self._real: list[tuple[Tensor, Tensor | None]] = []  # features and probabilities
        self._fake: list[tuple[Tensor, Tensor | None]] = []
        self._reference: Reference | None = None

    @property
    def suffix(self) -> str:
        """What ends the names of what the features tell: which these are."""
        return self.feature.suffix if self.feature is not None else ""

    def reset(self) -> None:
        """Forget all pictures but the reference."""
        self.real_variation.reset()
        self.fake_variation.reset()
        self._real, self._fake = [], []

    def see_real(self, image: Tensor, measured: bool) -> None:
        """Look at real pictures; their features too, if they are to be `measured`."""
        self.real_variation.update(image)
        if measured and self.feature is not None:
            self._real.append(self.feature(image))

    def see_fake(self, image: Tensor) -> None:
        """Look at generated pictures."""
        self.fake_variation.update(image)
        if self.feature is not None:
            self._fake.append(self.feature(image))

    def refer_to(self, images: Callable[[], Iterable[Tensor]], digest: Callable[[], str]) -> None:
        """Say which real pictures all are compared with; they are looked at once for each `digest`."""
        if self._reference is None and self.feature is not None:
            self._reference = self.feature.reference(images(), digest(), self.num_samples)

    def diversity(self) -> float:
        """Return how much the generated pictures vary, over how much the real ones do: near 1 if all is well."""
        return float((self.fake_variation.compute() / self.real_variation.compute()).sqrt())

    def scores(self) -> dict[str, float]:
        """Return `leyden.metrics.generation.measure` of the generated pictures, by its names and the features'.

        And of the real pictures that were measured, names ending in `_real`: what a perfect generator would reach with
        as many pictures. With fewer, FID and KID's noise are higher.
        """
        return self._measured(self._fake, "") | self._measured(self._real, "_real")

    def class_shares(self) -> tuple[Tensor, Tensor] | None:
        """Return the shares (K,) of generated, and of measured real, pictures that are taken for each class."""
        fake, real = (_gathered([proba for _, proba in pairs]) for pairs in (self._fake, self._real))
        return None if fake is None or real is None else (class_shares(fake), class_shares(real))

    def _measured(self, pairs: list[tuple[Tensor, Tensor | None]], ending: str) -> dict[str, float]:
        features, proba = (_gathered([pair[i] for pair in pairs]) for i in range(2))
        if features is None or self._reference is None:
            return {}
        figures = measure(self._reference, features, proba)
        return {f"{name}{self.suffix}{ending}": value for name, value in figures.items()}


class Variation(Metric):
    """The mean variance of a pixel over pictures (B, C, H, W)."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "squares", "count"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, image: Tensor) -> None:
        """Count pictures in."""
        # the difference of two sums in float32 would be mostly rounding where pictures hardly vary; MPS has no float64
        image = image.float() if image.device.type == "mps" else image.double()
        self.total = self.total + image.sum(0)
        self.squares = self.squares + image.square().sum(0)
        self.count = self.count + len(image)

    def compute(self) -> Tensor:
        """Return the variance."""
        return (self.squares / self.count - (self.total / self.count).square()).mean()


def _gathered(mine: list[Any]) -> Tensor | None:
    """Return one tensor of what all ranks hold in batches, which may differ in size; None if it is not there."""
    if not mine or mine[0] is None:
        return None
    together = torch.cat(mine)
    if not torch.distributed.is_initialized():
        return together
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, together.cpu())
    return torch.cat(parts).to(together)
