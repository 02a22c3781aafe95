"""Gradient accumulation within a batch, for batches that do not fit into memory as a whole."""

from collections import OrderedDict
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from typing_extensions import override

from leyden.batch import split_microbatches


class MicrobatchOptimization(_AutomaticOptimization):
    """Takes one optimizer step for each batch, whose microbatches are computed one after another.

    All counters count batches, not parts, so a resumed run may use another number of parts.
    """

    def __init__(self, trainer: Trainer, num_parts: int) -> None:
        super().__init__(trainer)
        self._num_parts = num_parts

    @override
    def _make_closure(self, kwargs: OrderedDict[str, Any], optimizer: torch.optim.Optimizer, batch_idx: int) -> Closure:
        """Return a closure that adds up the gradients of the parts; the ranks average them only in the last part."""
        if self._skip_backward:
            return super()._make_closure(kwargs, optimizer, batch_idx)
        zero_grad = self._make_zero_grad_fn(batch_idx, optimizer)
        backward = self._make_backward_fn(optimizer)
        assert zero_grad is not None
        assert backward is not None

        def forward(part: Any, share: float) -> ClosureResult:
            result = self._training_step(OrderedDict(kwargs, batch=part))
            loss = None if result.closure_loss is None else result.closure_loss * share
            return ClosureResult(loss, extra=result.extra)

        def run_parts() -> ClosureResult:
            losses: list[torch.Tensor] = []
            *others, last = split_microbatches(kwargs["batch"], self._num_parts)
            zero_grad()
            for part, share in others:
                with _block_parallel_sync_behavior(self.trainer.strategy, block=True):
                    result = forward(part, share)
                    if result.closure_loss is not None and result.loss is not None:
                        backward(result.closure_loss)
                        losses.append(result.loss)
            result = forward(*last)
            if result.loss is not None:
                result.loss = sum(losses, result.loss)
            return result

        return Closure(run_parts, backward)
