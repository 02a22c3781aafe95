"""A decoder-only Transformer as a language model: token (B, T) to logits (B, T, V)."""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.errors import UserError
from leyden.nets.arguments import Probability, State


class TransformerLM(nn.Module):
    """GPT-2 (Radford et al. 2019) with rotary positions (Su et al. 2021) and no biases.

    In every layer a token attends to itself and the `context - 1` tokens before it, however long the text is. The state
    holds the keys, not yet rotated, and the values of these tokens for each layer, (B, N, S, H / N) with S < context.
    Continuing from a state is therefore the same as reading one longer text. `mlp` is GELU or SwiGLU (Shazeer 2020),
    of inner size `mlp_size`.
    """

    def __init__(
        self,
        vocab_size: PositiveInt,
        hidden_size: PositiveInt,
        num_layers: PositiveInt,
        num_heads: PositiveInt,
        context: PositiveInt,
        mlp_size: PositiveInt,
        mlp: Literal["gelu", "swiglu"] = "gelu",
        tied: bool = True,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(hidden_size, num_heads, context, mlp_size, mlp, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, bias=False)
        self.decoder = nn.Linear(hidden_size, vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:  # as in GPT-2, the residual branches of deeper nets start smaller
            for linear in (block.project, block.mlp.down):
                nn.init.normal_(linear.weight, std=0.02 / (2 * num_layers) ** 0.5)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, token: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the logits (B, T, V) for tokens (B, T), and the final state; no `state` means that the text begins.

        Text longer than `context` is read in parts of that length.
        """
        logits = []
        for part in token.split(self.context, 1):
            out, state = self._read(part, state)
            logits.append(out)
        return torch.cat(logits, 1), state

    def _read(self, token: Tensor, state: State | None) -> tuple[Tensor, State]:
        x = self.dropout(self.embedding(token))  # (B, T, H)
        num_past = 0 if state is None else state[0].shape[2]
        total = num_past + token.shape[1]
        angles = rotations(total, self.blocks[0].head_size, x)
        # several tokens after a state need a mask; without a state attention is causal; one token needs neither
        mask = None
        if num_past and token.shape[1] > 1:
            distance = torch.arange(num_past, total, device=x.device)[:, None] - torch.arange(total, device=x.device)
            mask = (distance >= 0) & (distance < self.context)  # (T, S + T)
        new_state: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            past = None if state is None else state[2 * index : 2 * index + 2]
            x, block_state = block(x, past, angles, mask)
            new_state.extend(block_state)
        return self.decoder(self.norm(x)), tuple(new_state)


class Block(nn.Module):
    """Attention and MLP, each applied to its normalised input and added to it."""

    def __init__(self, hidden_size: int, num_heads: int, context: int, mlp_size: int, mlp: str, dropout: float) -> None:
        super().__init__()
        if hidden_size % (2 * num_heads):
            raise UserError(
                f"model.net.hidden_size={hidden_size} does not split into model.net.num_heads={num_heads} heads of "
                f"even size; set it to a multiple of {2 * num_heads}"
            )
        self.num_heads, self.head_size, self.context = num_heads, hidden_size // num_heads, context
        self.norm1 = nn.LayerNorm(hidden_size, bias=False)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.project = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm2 = nn.LayerNorm(hidden_size, bias=False)
        self.mlp = MLP(hidden_size, mlp_size, gated=mlp == "swiglu")
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, past: State | None, angles: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the outputs (B, T, H), and the keys and values of the last `context - 1` tokens."""
        b, t, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, t, 3, self.num_heads, self.head_size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, N, T, H / N) each
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)  # (B, N, S + T, H / N)
        y = F.scaled_dot_product_attention(
            rotate(q, angles), rotate(k, angles), v, mask, is_causal=mask is None and t > 1
        )
        x = x + self.dropout(self.project(y.transpose(1, 2).flatten(2)))
        x = x + self.dropout(self.mlp(self.norm2(x)))
        start = max(0, k.shape[2] - self.context + 1)
        return x, (k[:, :, start:], v[:, :, start:])


class MLP(nn.Module):
    """The feed-forward layer: Linear, GELU, Linear; if `gated`, SwiGLU instead (Shazeer 2020)."""

    def __init__(self, hidden_size: int, mlp_size: int, gated: bool) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, mlp_size, bias=False)
        self.gate = nn.Linear(hidden_size, mlp_size, bias=False) if gated else None
        self.down = nn.Linear(mlp_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (B, T, H) for x (B, T, H)."""
        return self.down(F.gelu(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x))


def rotations(num_steps: int, head_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, (num_steps, head_size / 2) each, which rotate queries and keys (Su et al. 2021)."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    pair = torch.arange(0, head_size, 2, device=like.device, dtype=dtype)
    step = torch.arange(num_steps, device=like.device, dtype=dtype)
    angle = step[:, None] * 10_000.0 ** (-pair / head_size)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Return x (B, N, T, H) with its pairs of features rotated by the last T angles."""
    cos, sin = (part[-x.shape[2] :].to(x.dtype) for part in angles)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
