"""Language models: a net that predicts the next token, trained on windows of text, and text generation."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torchmetrics import Metric

from leyden.batch import NO_TARGET, TextBatch
from leyden.errors import UserError
from leyden.models.model import EvaluatedModel, OptimizerCallable, ScheduleCallable, eval_mode, float32_at_least
from leyden.models.text.sampling import Sampling
from leyden.schema.text import Text, likelihood

State = tuple[Tensor, ...]  # state of a net, each tensor batch first


class LanguageModel(EvaluatedModel):
    """A net trained by cross-entropy on the next token, by truncated back-propagation through time.

    The net takes tokens (B, T) and a state, or None, and returns logits (B, T, V) and the state after them, a tuple of
    tensors, batch first. If a batch has `carry`, the state continues from the batch before, without its gradient;
    training and evaluation have separate states, and the checkpoint holds that of training.

    Logs `loss` in nats per token; validation and test add `perplexity` and `bits_per_char`, all of them over
    the whole split and all ranks. An unknown word counts as the characters that it stands for. Further `metrics` are
    updated with the logits (N, V) and the targets (N,) of all tokens in a batch that have a target.
    """

    monitor = ("val/loss", "min")

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable,
        schedule: ScheduleCallable | None = None,
        metrics: dict[str, Metric] | None = None,
        parameter_groups: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(net, optimizer, schedule, metrics, parameter_groups)
        self._state: State | None = None  # carried from one training batch to the next
        self._eval_state: State | None = None
        self._eval_logits: Tensor | None = None  # the logits of the last evaluated batch
        self._nats: list[Tensor] = []  # () each, on the device: the summed losses of an evaluated batch
        self._counts: list[Tensor] = []  # () int64 each: the number of targets in the batch
        self._chars_per_target: list[float] = []

    def forward(self, token: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """Return the logits (B, T, V) of tokens (B, T), and the state after them."""
        return self.net(token, state)

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of the batch."""
        logits, state = self(batch.token, self._state if batch.carry else None)
        self._state = self._detach(state)
        loss = _cross_entropy(logits, batch.target, "sum") / (len(batch.target) * batch.targets_per_row)
        self.log("train/loss", loss, batch_size=len(batch.target))
        return loss

    def on_train_start(self) -> None:
        """Move the state that was restored from a checkpoint to the device."""
        self._state = self._state and tuple(part.to(self.device) for part in self._state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the carried state of the rows of all ranks; a collective that every rank must call."""
        if self._state is not None:
            checkpoint["carried_state"] = [_gather(part) for part in self._state]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore this rank's rows of the carried state."""
        saved_state = checkpoint.get("carried_state")
        self._state = None if saved_state is None else tuple(_rows_of_rank(part) for part in saved_state)

    def predict_step(self, batch: TextBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return each row's sum of losses, `nats` (B,) float64, and its number of targets, `num_targets` (B,).

        A row of any length is read in windows as in an evaluation, with the state carried if the data carry it.
        """
        token, target = batch.token.to(self.device), batch.target.to(self.device)
        window = self._text.window if self._text else token.shape[1]
        nats = torch.zeros(len(token), dtype=torch.float64)
        state: State | None = None
        with torch.no_grad(), eval_mode(self.net):
            for part, part_target in zip(*(x.split(window, 1) for x in (token, target)), strict=True):
                logits, next_state = self(part, state)
                state = self._detach(next_state)
                nats += _cross_entropy(logits, part_target, "none").view(part_target.shape).sum(1).double().cpu()
        return {"nats": nats, "num_targets": (target != NO_TARGET).sum(1).cpu()}

    def sample_scores(self, batch: TextBatch, answers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the `loss` of each row of the batch just evaluated: the sum of its losses, and their number, (B, 2).

        They come from the evaluation, which carries its state from batch to batch; `answers` is not read.
        """
        assert self._eval_logits is not None
        losses = _cross_entropy(self._eval_logits, batch.target, "none").view(batch.target.shape).double()
        return {"loss": torch.stack([losses.sum(1), (batch.target != NO_TARGET).sum(1).double()], 1)}

    @property
    def _text(self) -> Text | None:
        """The schema of the text, if the data have one."""
        field = self.schema and self.schema.input
        return field if isinstance(field, Text) else None

    def generate(
        self,
        prompt: Tensor,
        num_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> Iterator[Tensor]:
        """Continue prompts (B, T): yield the next token of each, (B,) int64, `num_tokens` times.

        The state is carried, so that the cost of a token does not grow with the text. See
        `leyden.models.text.sampling.Sampling` for the options. The random numbers come from `seed` alone, and neither
        training nor its state is changed; the net is in eval mode until the iterator ends or is closed.

        Raises:
            UserError: if an option is out of its bounds, or the prompt is empty.
        """
        if prompt.ndim != 2 or not prompt.shape[1]:
            raise UserError(f"the prompt has the shape {tuple(prompt.shape)}: should be (B, T), of one token or more")
        return self._generate(prompt, num_tokens, Sampling(temperature, top_k, top_p, repetition_penalty), seed)

    @torch.no_grad()
    def _generate(self, prompt: Tensor, num_tokens: int, sampling: Sampling, seed: int) -> Iterator[Tensor]:
        with eval_mode(self.net):
            generator = torch.Generator(self.device).manual_seed(seed)
            token, state, is_seen = prompt.to(self.device), None, None
            for _ in range(num_tokens):
                logits, state = self(token, state)
                if is_seen is None:
                    is_seen = torch.zeros_like(logits[:, -1], dtype=torch.bool).scatter_(1, token, True)  # (B, V)
                next_token = sampling.draw(logits[:, -1], is_seen, generator)  # (B,)
                token = next_token[:, None]
                is_seen.scatter_(1, token, True)
                yield next_token

    def _detach(self, state: State | None) -> State | None:
        """Return the state for the next batch without its gradient, or None if the data do not carry states."""
        if state is None or (self._text and not self._text.carry):
            return None
        return tuple(part.detach().clone() for part in state)  # a view would keep and save its whole base tensor

    def _update_scores(self, batch: TextBatch) -> None:
        logits, state = self(batch.token, self._eval_state if batch.carry else None)
        self._eval_state, self._eval_logits = self._detach(state), logits
        self._nats.append(_cross_entropy(logits, batch.target, "sum"))
        self._counts.append((batch.target != NO_TARGET).sum())
        self._chars_per_target.append(batch.chars_per_target)
        if self._metrics and (has_target := batch.target != NO_TARGET).any():
            self.measure(logits[has_target].float(), batch.target[has_target])

    def _reset(self) -> None:
        self._eval_state = self._eval_logits = None
        self._nats, self._counts, self._chars_per_target = [], [], []

    def _scores(self) -> dict[str, float]:
        nats, counts = (torch.stack(x).cpu().double() for x in (self._nats, self._counts))
        chars = counts * torch.tensor(self._chars_per_target, dtype=torch.float64)
        sums = torch.stack([nats.sum(), counts.sum(), chars.sum()])
        if _world_size() > 1:
            sums = sums.to(self.device)
            distributed.all_reduce(sums)
        total_nats, num_targets, num_chars = sums.tolist()
        scores = likelihood(total_nats, num_targets, num_chars / num_targets)
        scores["loss"] = scores.pop("nats_per_token")
        self._reset()  # frees the batches' tensors until the next evaluation
        return scores


def _cross_entropy(logits: Tensor, target: Tensor, reduction: str) -> Tensor:
    logits = float32_at_least(logits.flatten(0, 1))
    return F.cross_entropy(logits, target.flatten(), ignore_index=NO_TARGET, reduction=reduction)


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _gather(part: Tensor) -> Tensor:
    """Return the rows of all ranks, in the order of the ranks."""
    if _world_size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(_world_size())]
    distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def _rows_of_rank(part: Tensor) -> Tensor:
    """Return this rank's rows."""
    return part if _world_size() == 1 else part.chunk(_world_size())[distributed.get_rank()].clone()
