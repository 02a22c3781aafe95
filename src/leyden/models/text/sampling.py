"""Draw the next token from logits, with repetition penalty, temperature, top-k and top-p."""

from dataclasses import dataclass

import torch
from torch import Tensor

from leyden.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """The changes that are made to the logits, in the order below, before a token is drawn.

    `repetition_penalty` above 1 makes tokens that occurred before less likely (Keskar et al. 2019, section 4.1).
    `temperature` divides the logits; at 0 the most likely token is always taken. The `top_k` most likely tokens are
    kept, and of these the fewest whose total probability is at least `top_p` (Holtzman et al. 2020, section 3.1).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, is_valid, bounds in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, and 1 at most"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not is_valid:
                raise UserError(f"{name}={getattr(self, name)}: should be {bounds}")

    def draw(self, logits: Tensor, is_seen: Tensor, generator: torch.Generator) -> Tensor:
        """Return one token (B,) for logits (B, V); `is_seen` (B, V) bool marks the tokens that occurred before."""
        logits = penalise(logits.float(), is_seen, self.repetition_penalty)
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = keep_most_likely(logits / self.temperature, self.top_k, self.top_p)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


def penalise(logits: Tensor, is_seen: Tensor, penalty: float) -> Tensor:
    """Divide the logits (B, V) of seen tokens by the penalty, or multiply those below zero."""
    if penalty == 1:
        return logits
    return torch.where(is_seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_most_likely(logits: Tensor, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """Keep the `top_k` highest logits (B, V), and of these the fewest that reach `top_p`; set all others to -inf.

    At least one logit is kept. Of equal logits, those with the lower index come first.
    """
    if top_k is None and top_p == 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[..., top_k:] = -torch.inf
    proba = ordered.softmax(-1)
    mass_before = proba.cumsum(-1) - proba  # the probability of all more likely tokens
    mass_before[..., 0] = 0.0
    ordered[mass_before >= top_p] = -torch.inf
    return torch.empty_like(logits).scatter(-1, order, ordered)
