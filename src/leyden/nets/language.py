"""Recurrent language models: token (B, T) to logits (B, T, V) and the next state."""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.nets.arguments import Probability, State
from leyden.nets.min_rnn import MinBlock, MinGRU, MinLSTM
from leyden.nets.recurrent import Cell, LockedDropout, Recurrent


class RecurrentLM(nn.Module):
    """An embedding, a stack of recurrent layers, and a linear decoder.

    With every dropout and with `tied` embedding and decoder (Press & Wolf 2017), it is the AWD-LSTM of Merity et al.
    2018: `embedding_dropout` drops whole words; `input_dropout`, `dropout` and `output_dropout` drop the same features
    at every step, of the embeddings, between the layers and before the decoder; `weight_drop` drops hidden-to-hidden
    weights. If `tied` sizes differ, a linear layer maps the hidden state to the embedding's size (in the paper, the
    last recurrent layer is smaller instead).
    """

    def __init__(
        self,
        vocab_size: PositiveInt,
        embedding_dim: PositiveInt,
        hidden_size: PositiveInt,
        num_layers: PositiveInt = 1,
        cell: Cell = "lstm",
        tied: bool = False,
        embedding_dropout: Probability = 0.0,
        input_dropout: Probability = 0.0,
        dropout: Probability = 0.0,
        output_dropout: Probability = 0.0,
        weight_drop: Probability = 0.0,
        layer_norm: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_dropout = embedding_dropout
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.input_dropout = LockedDropout(input_dropout)
        self.recurrent = Recurrent(
            embedding_dim,
            hidden_size,
            num_layers,
            cell,
            dropout=dropout,
            weight_drop=weight_drop,
            layer_norm=layer_norm,
            residual=residual,
        )
        self.output_dropout = LockedDropout(output_dropout)
        needs_projection = tied and embedding_dim != hidden_size
        self.project = nn.Linear(hidden_size, embedding_dim) if needs_projection else nn.Identity()
        self.decoder = nn.Linear(embedding_dim if tied else hidden_size, vocab_size)
        if tied:
            self.decoder.weight = self.embedding.weight
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, token: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the logits (B, T, V) for tokens (B, T), and the final state; no `state` means zeros."""
        embedding = self.embedding.weight
        if self.training and self.embedding_dropout:
            embedding = embedding * F.dropout(torch.ones_like(embedding[:, :1]), self.embedding_dropout)
        if self.training and self.input_dropout.p:
            out, state = self.recurrent(self.input_dropout(F.embedding(token, embedding)), state)  # (B, T, H)
        else:
            out, state = self.recurrent(token, state, embedding=embedding)
        return self.decoder(self.project(self.output_dropout(out))), state


class MinRNNLM(nn.Module):
    """The language model of Feng et al. 2024: blocks of convolution, minGRU or minLSTM, and MLP.

    The state lists the states of the blocks in order.
    """

    def __init__(
        self,
        vocab_size: PositiveInt,
        hidden_size: PositiveInt,
        num_layers: PositiveInt,
        mlp_size: PositiveInt,
        cell: Literal["mingru", "minlstm"] = "mingru",
        expansion: PositiveInt = 1,
        kernel_size: PositiveInt = 4,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        layer = MinGRU if cell == "mingru" else MinLSTM
        self.blocks = nn.ModuleList(
            MinBlock(hidden_size, layer, expansion, kernel_size, mlp_size, dropout) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.decoder = nn.Linear(hidden_size, vocab_size)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, token: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the logits (B, T, V) for tokens (B, T), and the final state; no `state` means zeros."""
        x = self.dropout(self.embedding(token))  # (B, T, H)
        new_state: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x, block_state = block(x, None if state is None else state[2 * index : 2 * index + 2])
            new_state.extend(block_state)
        return self.decoder(self.norm(x)), tuple(new_state)
