"""How ranks work together, where Lightning's own strategies do not fit."""

from lightning.pytorch.strategies import DDPStrategy


class Replicas(DDPStrategy):
    """Equal copies on every rank, for models that average their gradients themselves (`leyden.models.manual`).

    Lightning's wrapper around the model expects every parameter to get a gradient in each backward pass, which nets
    that take turns do not give.
    """

    def configure_ddp(self) -> None:
        """Wrap nothing: weights are drawn from the seed, or loaded, alike on all ranks."""
