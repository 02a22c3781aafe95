"""Classification of texts: tokens (B, T) with their lengths to logits (B, K), by a recurrent stack or a Transformer."""

from typing import Any, Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from leyden.nets.arguments import Probability
from leyden.nets.recurrent import SequenceClassifier, positions
from leyden.nets.transformer import Block, rotations


class TextClassifier(nn.Module):
    """An embedding of the tokens, then a `SequenceClassifier`, which takes the other arguments."""

    def __init__(
        self, vocab_size: PositiveInt, num_classes: PositiveInt, embedding_dim: PositiveInt = 64, **kwargs: Any
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.classifier = SequenceClassifier(embedding_dim, num_classes, **kwargs)

    def forward(self, token: Tensor, length: Tensor) -> Tensor:
        """Return the logits (B, K) of texts (B, T) of `length` (B,)."""
        return self.classifier(self.embedding(token), length)


class TransformerTextClassifier(nn.Module):
    """A Transformer encoder with the blocks of `TransformerLM`; every token attends to its whole text.

    The outputs are averaged over the tokens. `mlp` is GELU or SwiGLU, of inner size `mlp_size`.
    """

    def __init__(
        self,
        vocab_size: PositiveInt,
        num_classes: PositiveInt,
        hidden_size: PositiveInt = 64,
        num_layers: PositiveInt = 2,
        num_heads: PositiveInt = 4,
        mlp_size: PositiveInt = 128,
        mlp: Literal["gelu", "swiglu"] = "gelu",
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        blocks = (Block(hidden_size, num_heads, 1, mlp_size, mlp, dropout) for _ in range(num_layers))
        self.blocks = nn.ModuleList(blocks)  # context=1, because no state is carried between texts
        self.norm = nn.LayerNorm(hidden_size, bias=False)
        self.head = nn.Linear(hidden_size, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, token: Tensor, length: Tensor) -> Tensor:
        """Return the logits (B, K) of texts (B, T) of `length` (B,)."""
        x = self.dropout(self.embedding(token))  # (B, T, H)
        is_text = positions(x) < length[:, None]  # (B, T)
        angles = rotations(token.shape[1], self.blocks[0].head_size, x)
        for block in self.blocks:
            x, _ = block(x, None, angles, is_text[:, None, None, :])
        total = self.norm(x).masked_fill(~is_text[:, :, None], 0).sum(1)
        return self.head(total / length[:, None])
