"""The moving average of a net's weights."""

import copy

import torch
from torch import nn


class Average(nn.Module):
    """A copy of a net whose weights are the exponential moving average of the net's (Polyak & Juditsky 1992).

    After step t it moves by 1 - min(`decay`, (1 + t) / (10 + t)) towards the net, so that the initial weights are soon
    forgotten. Running statistics of batch norms are averaged alike.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Move towards `net`, which has taken `step` steps, without waiting for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = ([*n.parameters(), *n.buffers()] for n in (self.net, net))
        moving = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in moving], [b for _, b in moving], 1 - decay)
        for a, b in zip(ours, theirs, strict=True):
            if not a.is_floating_point():  # counters
                a.copy_(b)
