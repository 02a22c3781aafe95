"""Translation: a net that reads one sentence and writes another, trained with the true words before each."""

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric
from torchmetrics.text import SacreBLEUScore

from leyden.batch import BEGIN, END, PAD, PairBatch
from leyden.figures import plots
from leyden.models.beam import Found, beam_search
from leyden.models.model import Model, float32_at_least

NUM_SHOWN = 6  # attention maps of a test


class Translator(Model):
    """A net trained by cross-entropy on each next token of the translation, the tokens before it given.

    `net.encode(source, length)` gives a tuple of tensors (B, …) to look at and the first state, another;
    `net.decode(target, memory, state)` the logits of what follows each token, the state after, and attention
    weights or None. Logs `loss` and `accuracy` per token in every stage (smoothed in training only);
    validation and test add `perplexity` over the whole split and `bleu`, from 0 to 100, of sacreBLEU (Post
    2018: tokens 13a, no smoothing) on plain text, without regard to case if `lowercase`. Validation translates
    greedily, test and prediction by a beam of `beam_size` with `length_penalty` (Wu et al. 2016, eq. 14), to at
    most `max_length` tokens. The test also keeps each sentence, its true translation and the one found, with tabs
    between them, and draws the attention of some.
    """

    monitor = ("val/bleu", "max")
    lockstep = False  # a search ends when its sentences do
    from_data: ClassVar[tuple[str, ...]] = ("source_vocabulary", "target_vocabulary")

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., LRScheduler] | None = None,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        beam_size: PositiveInt = 5,
        length_penalty: NonNegativeFloat = 1.0,
        max_length: PositiveInt = 100,
        lowercase: bool = False,
    ) -> None:
        super().__init__(net, optimizer, schedule)
        self.label_smoothing = label_smoothing
        self.beam_size, self.length_penalty, self.max_length = beam_size, length_penalty, max_length
        self.source_vocabulary: Any = None
        self.target_vocabulary: Any = None
        self.mean_loss = MeanMetric(nan_strategy=math.nan)  # the default drops NaN losses from the mean
        self.accuracy = MeanMetric()
        self.bleu = SacreBLEUScore(lowercase=lowercase)
        self._shown: list[PairBatch] = []
        self._texts: list[list[tuple[str, str, str]]] = []  # of each batch: source, its true translation, and ours

    def forward(self, source: Tensor, length: Tensor, target: Tensor) -> Tensor:
        """Return the logits (B, T, V) of what follows each token of `target` (B, T)."""
        return self.net(source, length, target)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of the tokens of the batch."""
        logits, target = self._logits(batch)
        losses = F.cross_entropy(
            logits, target, ignore_index=PAD, label_smoothing=self.label_smoothing, reduction="sum"
        )
        known, num_targets = target != PAD, len(batch.target) * batch.targets_per_row
        loss = losses / num_targets
        best = logits.detach().amax(1)  # a quarter of the time of argmax
        correct = (logits.detach().gather(1, target[:, None])[:, 0] == best) & known
        self.log("train/loss", loss, batch_size=len(batch.source))
        self.log("train/accuracy", correct.sum() / num_targets, batch_size=len(batch.source))
        return loss

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Count the batch in, translated greedily."""
        self._measure(batch, self.translate(batch, beam_size=1))

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Count the batch in, translated by the beam."""
        found = self.translate(batch)
        self._measure(batch, found)
        sides = (self.source_vocabulary, batch.source), (self.target_vocabulary, batch.target)
        texts = [vocabulary.decode(token) for vocabulary, token in (*sides, (self.target_vocabulary, found.token))]
        self._texts.append(list(zip(*texts, strict=True)))
        if len(self._shown) < NUM_SHOWN:
            self._shown.append(PairBatch(*(part[:1] for part in batch[:-1]), batch.targets_per_row))

    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Return what `predict` does."""
        return self.predict(batch)

    def predict(self, batch: PairBatch) -> list[dict[str, Any]]:
        """Return the `translation` of each row, in eval mode."""
        training = self.net.training
        self.net.eval()
        with torch.no_grad():
            source, length = batch.source.to(self.device), batch.source_length.to(self.device)
            found = self.translate(batch._replace(source=source, source_length=length))
        self.net.train(training)
        return [{"translation": text} for text in self.target_vocabulary.decode(found.token)]

    def translate(self, batch: PairBatch, beam_size: int | None = None) -> Found:
        """Search for the translations of a batch; its targets are not looked at."""
        beam_size = beam_size or self.beam_size
        memory, state = self.net.encode(batch.source, batch.source_length)
        # a sentence's hypotheses all look at the same, so it need not follow them as the state does
        wide = type(memory)(*(part.repeat_interleave(beam_size, 0) for part in memory)) if beam_size > 1 else memory

        def step(token: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            logits, state, _ = self.net.decode(token[:, None], wide, state)
            return logits[:, 0], state

        return beam_search(
            step,
            state,
            begin=BEGIN,
            end=END,
            pad=PAD,
            beam_size=beam_size,
            max_length=self.max_length,
            length_penalty=self.length_penalty,
        )

    def on_validation_epoch_end(self) -> None:
        """Log what was measured over the whole split."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log what was measured over the whole split, all translations, and the attention of a few sentences."""
        self._log_scores("test")
        texts = self._texts_of_all_ranks()
        self.log_text(
            "test/translations", "".join("\t".join(" ".join(text.split()) for text in row) + "\n" for row in texts)
        )
        for number, batch in enumerate(self._shown, 1):
            self._draw_attention(f"test/attention_{number}", batch)

    def _logits(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the logits (B·T, V) and their targets (B·T,), PAD where there is none."""
        logits = float32_at_least(self(batch.source, batch.source_length, batch.target[:, :-1]))
        return logits.flatten(0, 1), batch.target[:, 1:].flatten()

    def _measure(self, batch: PairBatch, found: Found) -> None:
        logits, target = self._logits(batch)
        known = (target != PAD).float()
        self.mean_loss.update(F.cross_entropy(logits, target, reduction="none"), known)
        self.accuracy.update((logits.argmax(1) == target).float(), known)
        true = self.target_vocabulary.decode(batch.target)
        self.bleu.update(self.target_vocabulary.decode(found.token), [[text] for text in true])

    def _reset(self) -> None:
        for metric in (self.mean_loss, self.accuracy, self.bleu):
            metric.reset()
        self._shown.clear()
        self._texts.clear()

    def _log_scores(self, stage: str) -> None:
        loss = self.mean_loss.compute()  # over all ranks already, like the others
        values = {"loss": loss, "perplexity": loss.exp(), "accuracy": self.accuracy.compute()}
        values["bleu"] = 100 * self.bleu.compute()
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True)

    def _texts_of_all_ranks(self) -> list[tuple[str, str, str]]:
        """Return all texts in the order of the data: each batch is the ranks' shares of it, one after another."""
        parts: list[Any] = [self._texts]
        if self.trainer.world_size > 1:
            parts *= self.trainer.world_size
            torch.distributed.all_gather_object(parts, self._texts)
        return [row for batch in zip(*parts, strict=True) for share in batch for row in share]

    def _draw_attention(self, name: str, batch: PairBatch) -> None:
        """Draw what each word of the translation looked at: the weights of a pass over the words found."""
        found = self.translate(batch).token
        given = torch.cat([torch.full_like(found[:, :1], BEGIN), found[:, :-1]], dim=1)
        memory, state = self.net.encode(batch.source, batch.source_length)
        weight = self.net.decode(given, memory, state)[2]
        if weight is None:
            return
        rows = [*self.target_vocabulary.pieces(found[0]), "END"][: found.shape[1]]  # no END at max_length
        columns = [*self.source_vocabulary.pieces(batch.source[0]), "END"]
        shown = weight[0].float().cpu().numpy()[: len(rows), : len(columns)]
        self.log_figure(name, lambda: plots.attention_map(shown, columns, rows))
