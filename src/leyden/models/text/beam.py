"""Beam search over any model that predicts token by token; greedy search is a beam of size one."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

State = tuple[Tensor, ...]


class Hypotheses(NamedTuple):
    """The best sequence of each row."""

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
    side; it returns the logits (N, V) of the next tokens, and the next state. `state` is that of the B sentences, a
    tuple of tensors (B, …). A hypothesis ends with `end`, or at `max_length` tokens. An ended hypothesis stays in the
    beam as long as its score is among the best. The search stops when no open hypothesis can overtake the best ended
    one, because log P only falls.
    """
    size, device = len(state[0]), state[0].device
    penalty = ((5 + torch.arange(max_length + 1, device=device)) / 6) ** length_penalty  # indexed by length
    first_row = torch.arange(size, device=device)[:, None] * beam_size  # (B, 1): where a sentence's hypotheses begin
    slots = torch.arange(beam_size, device=device).expand(size, -1)
    state = tuple(part.repeat_interleave(beam_size, 0) for part in state)
    last_token = torch.full((size, beam_size), begin, device=device)
    token = torch.full((size, beam_size, max_length), pad, device=device)
    length, is_ended = torch.zeros_like(last_token), torch.zeros_like(last_token, dtype=torch.bool)
    total = torch.where(slots == 0, 0.0, -torch.inf)  # log P; at first all hypotheses of a sentence are the same one
    score = total
    for t in range(max_length):
        logits, state = step(last_token.flatten(), state)
        next_log_p = logits.float().log_softmax(1).view(size, beam_size, -1)
        log_p = (total.masked_fill(is_ended, -torch.inf)[:, :, None] + next_log_p).flatten(1)  # (B, beam_size · V)
        log_p, index = log_p.topk(beam_size)
        next_token = index % next_log_p.shape[2]
        # the best hypotheses that continue with a token, and those that had ended before: (B, 2 · beam_size)
        pairs = {
            "parent": (index // next_log_p.shape[2], slots),
            "last": (next_token, torch.full_like(next_token, pad)),
            "total": (log_p, total.masked_fill(~is_ended, -torch.inf)),
            "length": (torch.full_like(length, t + 1), length),
            "ended": ((next_token == end) | (t + 1 == max_length), is_ended),
        }
        candidates = {name: torch.cat(pair, 1) for name, pair in pairs.items()}
        best = (candidates["total"] / penalty[candidates["length"]]).topk(beam_size).indices  # (B, beam_size)
        parent, last_token, total, length, is_ended = (part.gather(1, best) for part in candidates.values())
        token = token.gather(1, parent[:, :, None].expand_as(token))
        token[:, :, t] = last_token
        state = tuple(part.index_select(0, (first_row + parent).flatten()) for part in state)
        score = (total / penalty[length]).masked_fill(~is_ended, -torch.inf)
        best_possible = total.masked_fill(is_ended, -torch.inf).amax(1) / penalty[max_length]
        if bool((score.amax(1) >= best_possible).all()):
            break
    score, best = score.max(1)
    return Hypotheses(token[torch.arange(size, device=device), best, : t + 1], score)
