"""Attention of a decoder's states over an encoder's: query (B, T, H) and memory (B, S, H) to context (B, T, H)."""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

Score = Literal["dot", "general", "additive"]


class Attention(nn.Module):
    """Softmax over the score of each memory position.

    `dot` is q·m and `general` q·Wm (Luong et al. 2015, equation 8); `additive` is v·tanh(W q + U m)
    (Bahdanau et al. 2015, appendix A.1.2), whose tanh takes B·T·S·H numbers.
    """

    def __init__(self, size: PositiveInt, score: Score = "general") -> None:
        super().__init__()
        self.score = score
        self.key = nn.Linear(size, size, bias=False) if score != "dot" else None
        self.query = nn.Linear(size, size) if score == "additive" else None
        self.v = nn.Linear(size, 1, bias=False) if score == "additive" else None

    def keys(self, memory: Tensor) -> Tensor:
        """Return the keys (B, S, H) that queries are scored with; they are the same for every step."""
        return memory if self.key is None else self.key(memory)

    def forward(self, query: Tensor, key: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the context (B, T, H), and the weights (B, T, S), zero where `mask` (B, S) is False."""
        if self.query is not None and self.v is not None:
            score = self.v(torch.tanh(self.query(query).unsqueeze(2) + key.unsqueeze(1))).squeeze(3)  # (B, T, S)
        else:
            score = query @ key.transpose(1, 2)  # (B, T, S)
        weight = score.masked_fill(~mask.unsqueeze(1), -torch.inf).softmax(2)
        return weight.to(memory.dtype) @ memory, weight
