"""FSDP2: weights, gradients and optimizer states are sharded over all ranks."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from pydantic import PositiveInt
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _get_default_group
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam
from typing_extensions import override

from leyden import checkpoints
from leyden.checkpoints.layout import layout_of
from leyden.errors import UserError
from leyden.models.model import Model
from leyden.training.loop import callbacks_of

BROADCAST_BYTES = 250 << 20  # bucket size of a coalesced broadcast, that of DDP


class FSDP(DDPStrategy):
    """Shards weights, gradients and optimizer states over the ranks (ZeRO stage 3, Rajbhandari et al. 2020; FSDP2).

    Nets need no changes. A net gathers its weights when it computes, block by block: a block is an element of a
    Sequential or ModuleList with `min_block` parameters or more. Averaged weights are sharded too, and checkpoints
    are folders. With bf16-mixed, weights are gathered as bfloat16 and gradients summed as float32.
    """

    def __init__(self, min_block: PositiveInt = 1_000_000) -> None:
        super().__init__()
        self._min_block = min_block

    @property
    @override
    def restore_checkpoint_after_setup(self) -> bool:
        """Tell Lightning to load a checkpoint after the model is sharded."""
        return True

    @override
    def setup(self, trainer: Trainer) -> None:
        """Shard the model and its averaged weights, then build its optimizers."""
        model = self.model
        assert self.accelerator is not None
        assert model is not None
        self.accelerator.setup(trainer)
        is_fitting = trainer.state.fn == TrainerFn.FITTING
        if is_fitting:
            if self._layer_sync:
                model = self._layer_sync.apply(model)
                self._layer_sync = None  # undoing it would replace modules that hold shards
            model = self.model = self.precision_plugin.convert_module(model)
            averages = [c._average_model for c in callbacks_of(trainer) if isinstance(c, WeightAveraging)]
            mesh = init_device_mesh(self.root_device.type, (self.world_size,))
            for module in (model, *(average.module for average in averages if average is not None)):
                for net in _nets(module):
                    self._shard(net, mesh)
        self.model_to_device()
        if is_fitting:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    @override
    def setup_optimizers(self, trainer: Trainer) -> None:
        """Build the optimizers, and turn off fused steps that do not support shards."""
        super().setup_optimizers(trainer)
        self._unfuse()

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the states, but keep this strategy's choice of fused steps."""
        super().load_optimizer_state_dict(checkpoint)
        self._unfuse()

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save this rank's shards; every rank calls this."""
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint of any strategy, with only this rank's parts of sharded tensors."""
        assert self.lightning_module is not None
        return checkpoints.load(Path(checkpoint_path), layout_of(self.lightning_module, self.optimizers))

    def _shard(self, net: nn.Module, mesh: DeviceMesh) -> None:
        for parameter in net.parameters():
            parameter.data = parameter.data.contiguous()  # a shard cannot be channels_last; the net's input can
        blocks = _blocks(net, self._min_block)
        for module in (*blocks, net):
            fully_shard(module, mesh=mesh, mp_policy=self._policy(net))
        net.register_forward_pre_hook(_share_buffers)
        net.register_forward_hook(_release)
        if net._compiled_call_impl is not None:  # with these hooks torch would silently compile nothing
            net._compiled_call_impl = net._call_impl
            for module in blocks or [net]:
                module.forward = torch.compile(module.forward)

    def _unfuse(self) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if group.get("fused") and not isinstance(optimizer, Adam):
                    group["fused"] = None  # torch's sharded tensors support the fused step of Adam only

    def _policy(self, net: nn.Module) -> MixedPrecisionPolicy:
        # batch norms keep their statistics in float32
        has_batchnorm = any(isinstance(module, _BatchNorm) for module in net.modules())
        precision = str(self.precision_plugin.precision)
        param_dtype = torch.bfloat16 if precision == "bf16-mixed" and not has_batchnorm else None
        reduce_dtype = torch.float32 if precision.startswith("bf16") else None
        return MixedPrecisionPolicy(param_dtype, reduce_dtype, cast_forward_inputs=False)  # autocast casts the inputs


def _nets(model: nn.Module) -> list[nn.Module]:
    """List the modules of a model that have parameters and compute."""
    children = model.children()
    nets = [net for child in children for net in (child.values() if isinstance(child, nn.ModuleDict) else [child])]
    return [net for net in nets if any(True for _ in net.parameters())]


def _blocks(net: nn.Module, min_size: int) -> list[nn.Module]:
    """Find the blocks whose weights are gathered one after another; inner blocks come first.

    A block's weights may only be used in its `forward`. That holds for the elements of a Sequential or a ModuleList,
    unless they share a weight with the rest of the net.
    """
    uses = _count_uses(net)
    blocks: list[nn.Module] = []
    assigned: set[int] = set()

    def visit(module: nn.Module) -> None:
        for child in module.children():
            visit(child)
            uses_inside = _count_uses(child)
            size = sum(p.numel() for p in child.parameters() if id(p) not in assigned)
            shares_nothing = all(uses[p] == count for p, count in uses_inside.items())
            if isinstance(module, nn.Sequential | nn.ModuleList) and size >= min_size and shares_nothing:
                assigned.update(uses_inside)
                blocks.append(child)

    visit(net)
    return blocks


def _count_uses(module: nn.Module) -> Counter[int]:
    return Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))


@torch.compiler.disable
def _share_buffers(net: nn.Module, _: Any) -> None:
    """Take over rank 0's statistics of batch norms, as DDP does before every forward pass."""
    if buffers := list(net.buffers()):
        dist._broadcast_coalesced(_get_default_group(), buffers, BROADCAST_BYTES, 0)


@torch.compiler.disable
def _release(net: Any, *_: Any) -> None:
    """Free the weights that a net has gathered, unless a backward pass will free them."""
    if not torch.is_grad_enabled():
        net.reshard()


def check(model: LightningModule, precision: str) -> None:
    """Check that a model can be sharded.

    Raises:
        UserError: if the model cannot be sharded; the message says why.
    """
    name = type(model).__name__
    if not getattr(model, "lockstep", True):
        raise UserError(
            f"trainer.strategy=fsdp: the ranks of a {name} do not all call its nets at the same time, as sharding "
            "requires; choose trainer.strategy=ddp"
        )
    if isinstance(model, Model) and model.trains_some_later:
        raise UserError(
            "trainer.strategy=fsdp cannot unfreeze a parameter group at an epoch: write freeze: true, or choose "
            "trainer.strategy=ddp"
        )
    if precision not in ("32", "32-true", "bf16-mixed", "bf16-true", "64", "64-true", "None"):
        raise UserError(f"precision={precision}: trainer.strategy=fsdp takes 32, bf16-mixed, bf16-true or 64")
    for key, parameter in model.named_parameters():
        if "." not in key:
            raise UserError(
                f"trainer.strategy=fsdp shards the modules of a model; {key} is a parameter of {name} itself"
            )
        if not parameter.ndim:
            raise UserError(f"trainer.strategy=fsdp cannot shard {key}, a single number: give it the shape (1,)")
