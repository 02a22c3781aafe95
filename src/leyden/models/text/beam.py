"""Beam search over any model that predicts token by token; greedy search is a beam of size one."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

State = tuple[Tensor, ...]


class Hypotheses(NamedTuple):
    """The best sequence that was found for each row."""

    token: Tensor  # (B, L) int64: END included, then PAD
    score: Tensor  # (B,) log P over the length penalty


def beam_search(
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    state: State,
    *,
    begin: int,
    end: int,
    pad: int,
    beam_size: int = 1,
    max_length: int = 100,
    length_penalty: float = 0.0,
) -> Hypotheses:
    """Search for the sequence with the highest log P / ((5 + length) / 6)^length_penalty (Wu et al. 2016, eq. 14).

    `step` takes the last tokens (N,) and the state of N = B·beam_size hypotheses, those of a sentence side by
    side; it returns the logits (N, V) of the tokens to come, and the state after. `state` is that of the B
    sentences, a tuple of tensors (B, …). A hypothesis ends with `end`, or as it is at `max_length` tokens. An ended
    one keeps its place in the beam as long as its score is among the best. The search stops when no open hypothesis
    can still overtake, since log P only falls.
    """
    size, device = len(state[0]), state[0].device
    penalty = ((5 + torch.arange(max_length + 1, device=device)) / 6) ** length_penalty  # by length
    first = torch.arange(size, device=device)[:, None] * beam_size  # (B, 1): where a sentence's hypotheses begin
    slots = torch.arange(beam_size, device=device).expand(size, -1)
    state = tuple(part.repeat_interleave(beam_size, 0) for part in state)
    last = torch.full((size, beam_size), begin, device=device)
    token = torch.full((size, beam_size, max_length), pad, device=device)
    length, ended = torch.zeros_like(last), torch.zeros_like(last, dtype=torch.bool)
    total = torch.where(slots == 0, 0.0, -torch.inf)  # log P; at first all hypotheses of a sentence are the same one
    score = total
    for t in range(max_length):
        logits, state = step(last.flatten(), state)
        log_p = logits.float().log_softmax(1).view(size, beam_size, -1)
        grown = (total.masked_fill(ended, -torch.inf)[:, :, None] + log_p).flatten(1)  # (B, beam_size · V)
        grown, index = grown.topk(beam_size)
        word = index % log_p.shape[2]
        # the best that grew by a word, and those that had ended before: (B, 2 · beam_size)
        candidates = {
            "parent": (index // log_p.shape[2], slots),
            "last": (word, torch.full_like(word, pad)),
            "total": (grown, total.masked_fill(~ended, -torch.inf)),
            "length": (torch.full_like(length, t + 1), length),
            "ended": ((word == end) | (t + 1 == max_length), ended),
        }
        both = {name: torch.cat(parts, 1) for name, parts in candidates.items()}
        best = (both["total"] / penalty[both["length"]]).topk(beam_size).indices  # (B, beam_size)
        parent, last, total, length, ended = (part.gather(1, best) for part in both.values())
        token = token.gather(1, parent[:, :, None].expand_as(token))
        token[:, :, t] = last
        state = tuple(part.index_select(0, (first + parent).flatten()) for part in state)
        score = (total / penalty[length]).masked_fill(~ended, -torch.inf)
        within_reach = total.masked_fill(ended, -torch.inf).amax(1) / penalty[max_length]
        if bool((score.amax(1) >= within_reach).all()):
            break
    score, best = score.max(1)
    return Hypotheses(token[torch.arange(size, device=device), best, : t + 1], score)
