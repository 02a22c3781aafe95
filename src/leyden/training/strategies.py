"""Strategies for several ranks: DDP with reproducible gradient averages, and DDP without a wrapper."""

from functools import reduce
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from leyden.errors import UserError
from leyden.models.model import Model

# These strategies write checkpoints in their own formats.
UNSUPPORTED_STRATEGIES = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


def average_in_rank_order(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket of DDP's gradients over the ranks, always adding in the order of the ranks.

    gloo's all-reduce adds in an order that depends on the position in the bucket, and DDP rebuilds its buckets after
    the first step, so a resumed run of three or more ranks would differ in the last bits. This hook sends no more
    bytes.
    """
    flat, size = bucket.buffer(), dist.get_world_size()
    padded = torch.cat([flat, flat.new_zeros(-len(flat) % size)])  # one part for each rank to sum
    own_parts = torch.empty_like(padded)  # this rank's part of every rank's bucket
    dist.all_to_all_single(own_parts, padded)
    mean = reduce(torch.add, own_parts.chunk(size)) / size
    dist.all_gather_into_tensor(padded, mean)
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(flat.copy_(padded[: len(flat)]))
    return future


class DDP(DDPStrategy):
    """DDP whose gradient averages on the CPU are bit-equal after a resume."""

    @override
    def configure_ddp(self) -> None:
        """Wrap the model."""
        super().configure_ddp()
        # with two ranks the sum has only one order, so it is already deterministic
        if self.root_device.type == "cpu" and self.world_size > 2:
            assert isinstance(self.model, DistributedDataParallel)
            self.model.register_comm_hook(None, average_in_rank_order)


class UnwrappedDDP(DDPStrategy):
    """DDP without the wrapper, for models that average their gradients themselves (`leyden.models.manual`).

    Lightning's wrapper around the model expects every parameter to get a gradient in each backward pass, which fails
    for nets that are trained in turn.
    """

    @override
    def configure_ddp(self) -> None:
        """Do not wrap the model, since all ranks draw the same weights from the seed or load the same ones."""


def choose(strategy: Any, model: LightningModule, world_size: int, precision: Any = None) -> Any:
    """Return the strategy for a model that `trainer.strategy` names; other names are left to Lightning.

    Raises:
        UserError: if the model cannot be trained with this strategy.
    """
    if strategy == "fsdp" or not isinstance(strategy, str):
        from leyden.training import fsdp  # takes a second, since it imports torch.distributed.tensor

        strategy = fsdp.FSDP() if strategy == "fsdp" else strategy
        if isinstance(strategy, fsdp.FSDP):
            if world_size == 1:
                return "auto"
            fsdp.check(model, str(precision))
            return strategy
    if world_size == 1 and strategy in ("auto", "ddp"):
        return "auto"
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if name.startswith(("deepspeed", "fsdp_")) or isinstance(strategy, UNSUPPORTED_STRATEGIES):
        raise UserError(
            f"trainer.strategy={name} writes checkpoints of its own kind, which run code when they are read: "
            "trainer.strategy=fsdp shards weights, gradients and optimizer states"
        )
    if strategy not in ("auto", "ddp"):
        return strategy
    if getattr(model, "averages_gradients", False):
        return UnwrappedDDP()
    # A model with manual optimization may leave out a net in any pass. DDP must know a parameter that is trained later
    # when it wraps the model, although it has no gradient at first.
    may_be_unused = not model.automatic_optimization or (isinstance(model, Model) and model.trains_some_later)
    return DDP(gradient_as_bucket_view=True, find_unused_parameters=may_be_unused)
