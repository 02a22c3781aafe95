"""Encoder and decoder with attention: source tokens (B, S) and target tokens (B, T) to logits (B, T, V)."""

from typing import Literal, NamedTuple

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from leyden.errors import UserError
from leyden.nets.arguments import Probability, State
from leyden.nets.recurrent import Recurrent, last_output, positions


class Memory(NamedTuple):
    """The encoded source sentences that the decoder attends to."""

    value: Tensor  # (B, S, H) the encoder's outputs
    key: Tensor  # (B, S, H) their attention keys
    mask: Tensor  # (B, S) bool: False past the end of a sentence


class Seq2Seq(nn.Module):
    """A bidirectional encoder, and a decoder that attends to all of the encoder's outputs (Luong et al. 2015).

    The decoder's output h_t and its context c_t make h~_t = tanh(W [c_t; h_t]) (equation 5), and a linear layer maps
    h~_t to the logits; if `tied`, its weight is the target embedding's (Press & Wolf 2017). Without `input_feeding`, no
    step needs the attention of the previous one, so a whole target is one pass of the recurrent kernel and a few
    batched GEMMs. With it, h~_{t-1} is an input of step t (section 3.3), and training takes the steps one by one. With
    `attention=none` the decoder reads only the encoder's final state (Sutskever et al. 2014).

    Each direction of the encoder has half of `hidden_size`. One tanh layer maps its last outputs to the decoder's first
    state (Bahdanau et al. 2015, appendix A.2.2). `dropout` is applied to embeddings, to h~, and between layers.
    """

    def __init__(
        self,
        source_vocab_size: PositiveInt,
        target_vocab_size: PositiveInt,
        embedding_dim: PositiveInt = 256,
        hidden_size: PositiveInt = 256,
        num_layers: PositiveInt = 1,
        cell: Literal["lstm", "gru"] = "lstm",
        attention: Literal["none", "dot", "general", "additive"] = "general",
        input_feeding: bool = False,
        tied: bool = True,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        if hidden_size % 2:
            raise UserError(
                f"model.net.hidden_size={hidden_size} is odd, and each direction of the encoder has half of it: "
                f"set it to {hidden_size - 1} or {hidden_size + 1}"
            )
        self.input_feeding = input_feeding
        self.source_embedding = nn.Embedding(source_vocab_size, embedding_dim)
        self.target_embedding = nn.Embedding(target_vocab_size, embedding_dim)
        self.encoder = Recurrent(
            embedding_dim, hidden_size // 2, num_layers, cell=cell, bidirectional=True, dropout=dropout
        )
        feed_size = embedding_dim if input_feeding else 0
        self.decoder = Recurrent(embedding_dim + feed_size, hidden_size, num_layers, cell=cell, dropout=dropout)
        self.num_states = num_layers * (2 if cell == "lstm" else 1)
        self.bridge = nn.Linear(hidden_size, self.num_states * hidden_size)
        self.attention = None if attention == "none" else Attention(hidden_size, attention)
        self.combine = nn.Linear(2 * hidden_size if self.attention else hidden_size, embedding_dim)
        self.output = nn.Linear(embedding_dim, target_vocab_size)
        self.dropout = nn.Dropout(dropout)
        if tied:
            self.output.weight = self.target_embedding.weight
        for weight in (self.source_embedding.weight, self.target_embedding.weight, self.output.weight):
            nn.init.normal_(weight, std=embedding_dim**-0.5)  # rows of length about 1
        nn.init.zeros_(self.output.bias)

    def encode(self, source: Tensor, length: Tensor) -> tuple[Memory, State]:
        """Read sentences (B, S) of `length` (B,) tokens; return the decoder's memory and its first state."""
        out, _ = self.encoder(self.dropout(self.source_embedding(source)), length=length)  # (B, S, H)
        start = torch.tanh(self.bridge(last_output(out, length, bidirectional=True)))  # (B, num_states * H)
        state = start.chunk(self.num_states, dim=1)
        if self.input_feeding:
            state = (*state, out.new_zeros(len(out), self.combine.out_features))
        key = self.attention.keys(out) if self.attention else out
        return Memory(out, key, positions(source) < length[:, None]), state

    def decode(self, target: Tensor, memory: Memory, state: State) -> tuple[Tensor, State, Tensor | None]:
        """Read the tokens `target` (B, T) from `state` on.

        Return the logits (B, T, V) of each next token, the state after the last token, and the attention weights
        (B, T, S), None without attention.
        """
        x = self.dropout(self.target_embedding(target))  # (B, T, E)
        if self.input_feeding:
            output, state, weight = self._decode_with_feeding(x, memory, state)
        else:
            out, state = self.decoder(x, state)  # (B, T, H)
            output, weight = self._attend(out, memory)
        return self.output(self.dropout(output)), state, weight

    def forward(self, source: Tensor, length: Tensor, target: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the token after each of `target` (B, T), with teacher forcing."""
        return self.decode(target, *self.encode(source, length))[0]

    def _attend(self, out: Tensor, memory: Memory) -> tuple[Tensor, Tensor | None]:
        """Return h~ (B, T, E) for the decoder's outputs (B, T, H), and the attention weights."""
        weight = None
        if self.attention:
            context, weight = self.attention(out, memory.key, memory.value, memory.mask)
            out = torch.cat([context, out], dim=2)  # (B, T, 2H)
        return torch.tanh(self.combine(out)), weight

    def _decode_with_feeding(self, x: Tensor, memory: Memory, state: State) -> tuple[Tensor, State, Tensor | None]:
        """Take the steps one by one; the last tensor of `state` is h~ of the previous step."""
        *states, previous_output = state
        outputs, weights = [], []
        for step in x.unbind(1):
            out, states = self.decoder(
                torch.cat([step, previous_output], dim=1).unsqueeze(1), tuple(states)
            )  # (B, 1, H)
            output, weight = self._attend(out, memory)
            previous_output = output.squeeze(1)  # (B, E)
            outputs.append(previous_output)
            weights.append(weight)
        all_weights = None if self.attention is None else torch.cat(weights, dim=1)  # (B, T, S)
        return torch.stack(outputs, dim=1), (*states, previous_output), all_weights


class Attention(nn.Module):
    """Attention of decoder states over encoder outputs: query (B, T, H) and memory (B, S, H) to context (B, T, H).

    The weights are the softmax over the score of each memory position. `dot` is q·m and `general` q·Wm (Luong et al.
    2015, equation 8); `additive` is v·tanh(W q + U m) (Bahdanau et al. 2015, appendix A.1.2), whose tanh needs memory
    for B·T·S·H numbers.
    """

    def __init__(self, size: PositiveInt, score: Literal["dot", "general", "additive"] = "general") -> None:
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
