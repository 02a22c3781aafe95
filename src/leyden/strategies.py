"""How ranks work together, where Lightning's own strategies do not fit."""

from typing import Any

from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy


class Replicas(DDPStrategy):
    """Equal copies on every rank, for models that average their gradients themselves (`leyden.models.manual`).

    Lightning's wrapper around the model expects every parameter to get a gradient in each backward pass, which nets
    that take turns do not give.
    """

    def configure_ddp(self) -> None:
        """Wrap nothing: weights are drawn from the seed, or loaded, alike on all ranks."""


def choose(word: Any, model: LightningModule, world_size: int) -> Any:
    """Return the strategy that `trainer.strategy` means for a model; words that are not ours are left to Lightning."""
    if word in ("auto", "ddp") and world_size == 1:
        return "auto"
    if word not in ("auto", "ddp"):
        return word
    if getattr(model, "averages_gradients", False):
        return Replicas()
    # a model that steps by hand may leave out a net in any pass
    return DDPStrategy(gradient_as_bucket_view=True, find_unused_parameters=not model.automatic_optimization)
