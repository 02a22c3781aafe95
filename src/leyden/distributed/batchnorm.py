"""Batch norms over the samples of all ranks on the CPU; torch's SyncBatchNorm needs a GPU."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(LayerSync):
    """Lightning's `trainer.sync_batchnorm` on the CPU: training normalises by the mean and variance over all ranks."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the forward of the model's batch norms by `normalise`."""
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.forward = partial(normalise, module)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Restore the forward of the batch norms."""
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                vars(module).pop("forward", None)
        return model


def normalise(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Normalise x (B, C, …) by the statistics of x on all ranks; every rank must call this."""
    if not norm.training:
        return type(norm).forward(norm, x)
    dims, shape = [d for d in range(x.ndim) if d != 1], (1, -1, *[1] * (x.ndim - 2))
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    total = SumOverRanks.apply(torch.cat([values.sum(dims), values.new_tensor([x.numel() / x.shape[1]])]))
    mean, count = total[:-1] / total[-1], total[-1]
    if count <= 1:
        raise ValueError(f"expected more than 1 value per channel on all ranks when training, got {tuple(x.shape)}")
    values = values - mean.view(shape)
    var = SumOverRanks.apply(values.square().sum(dims)) / count
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
            norm.running_var.lerp_((var * count / (count - 1)).to(norm.running_var), momentum)
    values = values * (var + norm.eps).rsqrt().view(shape)
    if norm.affine:
        values = values * norm.weight.view(shape) + norm.bias.view(shape)
    return values.to(x.dtype)


class SumOverRanks(torch.autograd.Function):
    """The sum of every rank's tensor. Each rank's loss depends on it, so the gradient is the sum over all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the sum."""
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the sum of the gradients, which can be differentiated again."""
        return SumOverRanks.apply(gradient.contiguous())
