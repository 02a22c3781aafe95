"""Translation: a net that reads one sentence and writes another, trained by teacher forcing."""

import copy
import math
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.text import SacreBLEUScore

from leyden.batch import PairBatch
from leyden.errors import UserError
from leyden.figures import plots
from leyden.models.model import (
    EvaluatedModel,
    OptimizerCallable,
    ScheduleCallable,
    eval_mode,
    float32_at_least,
    gather_objects,
)
from leyden.models.text.beam import Hypotheses, beam_search
from leyden.preparation.subwords import BEGIN, END, PAD, Subwords
from leyden.schema.text import Sentence

NUM_SHOWN = 6  # attention maps of a test


class Translator(EvaluatedModel):
    """A net trained by cross-entropy on each next token of the translation, given the true tokens before it.

    `net.encode(source, length)` returns the memory to attend to and the first state, each a tuple of tensors (B, …);
    `net.decode(target, memory, state)` returns the logits of each next token, the next state, and the attention weights
    or None. Logs `loss` and `accuracy` per token in every stage (with label smoothing in training only); validation and
    test add `perplexity` over the whole split and `bleu`, sacreBLEU's score from 0 to 100 on plain text (Post 2018:
    tokens 13a, no smoothing), which ignores case if `lowercase`. Validation translates greedily, test and prediction by
    a beam of `beam_size` with `length_penalty` (Wu et al. 2016, eq. 14), to at most `max_length` tokens. The test also
    logs a text whose lines hold a sentence, its reference and its translation, separated by tabs, and draws the
    attention of a few. Further `metrics` are updated with the translations and, for each, a list of its one reference.
    """

    monitor = ("val/bleu", "max")
    lockstep = False  # ranks call the net a different number of times: a search ends with its longest sentence

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable,
        schedule: ScheduleCallable | None = None,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        beam_size: PositiveInt = 5,
        length_penalty: NonNegativeFloat = 1.0,
        max_length: PositiveInt = 100,
        lowercase: bool = False,
        metrics: dict[str, Metric] | None = None,
        parameter_groups: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(net, optimizer, schedule, metrics, parameter_groups)
        self.label_smoothing = label_smoothing
        self.beam_size, self.length_penalty, self.max_length = beam_size, length_penalty, max_length
        self.mean_loss = MeanMetric(nan_strategy=math.nan)  # the default drops NaN losses from the mean
        self.accuracy = MeanMetric()
        self.bleu = SacreBLEUScore(lowercase=lowercase)
        self._attention_batches: list[PairBatch] = []
        self._texts: list[list[tuple[str, str, str]]] = []  # (source, reference, translation) of each batch

    def forward(self, source: Tensor, length: Tensor, target: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the token after each of `target` (B, T)."""
        return self.net(source, length, target)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Return the mean loss per token of the batch."""
        logits, target = self._logits(batch)
        losses = F.cross_entropy(
            logits, target, ignore_index=PAD, label_smoothing=self.label_smoothing, reduction="sum"
        )
        is_token, num_targets = target != PAD, len(batch.target) * batch.targets_per_row
        loss = losses / num_targets
        best = logits.detach().amax(1)  # takes a quarter of the time of argmax
        correct = (logits.detach().gather(1, target[:, None])[:, 0] == best) & is_token
        self.log("train/loss", loss, batch_size=len(batch.source))
        self.log("train/accuracy", correct.sum() / num_targets, batch_size=len(batch.source))
        return loss

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Update the metrics with greedy translations."""
        self._update_scores(batch, self.translate(batch, beam_size=1))

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Update the metrics with the translations of the beam search, and keep them."""
        hypotheses = self.translate(batch)
        self._update_scores(batch, hypotheses)
        source, target = self._vocabularies
        sides = (source, batch.source), (target, batch.target), (target, hypotheses.token)
        texts = [vocabulary.decode(token.tolist()) for vocabulary, token in sides]
        self._texts.append(list(zip(*texts, strict=True)))
        if len(self._attention_batches) < NUM_SHOWN:
            self._attention_batches.append(PairBatch(*(part[:1] for part in batch[:-1]), batch.targets_per_row))

    def predict_step(self, batch: PairBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the `token` ids (B, T) of the translations, in eval mode; targets are not read."""
        with torch.no_grad(), eval_mode(self.net):
            source, length = batch.source.to(self.device), batch.source_length.to(self.device)
            return {"token": self.translate(batch._replace(source=source, source_length=length)).token}

    def sample_scores(self, batch: PairBatch, answers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the numbers (B, 10) that make up each translation's `bleu`; see `leyden.contracts.ScoresSamples`."""
        _, vocabulary = self._vocabularies
        bleu, rows = copy.deepcopy(self.bleu), []
        texts = (vocabulary.decode(token.tolist()) for token in (answers["token"], batch.target))
        for translation, reference in zip(*texts, strict=True):
            bleu.reset()
            bleu.update([translation], [[reference]])
            rows.append(torch.cat([bleu.numerator, bleu.denominator, torch.stack([bleu.preds_len, bleu.target_len])]))
        return {"bleu": torch.stack(rows)}

    @property
    def _vocabularies(self) -> tuple[Subwords, Subwords]:
        """The vocabularies of the sentences and of the translations."""
        sides = (self.schema.input, self.schema.answer) if self.schema else ()
        vocabularies = [side.vocabulary for side in sides if isinstance(side, Sentence)]
        if len(vocabularies) != 2:
            raise UserError("a Translator needs data whose schema holds two vocabularies, as leyden.data.Pairs do")
        return vocabularies[0], vocabularies[1]

    def translate(self, batch: PairBatch, beam_size: int | None = None) -> Hypotheses:
        """Search for the translations of a batch; its targets are not read."""
        beam_size = beam_size or self.beam_size
        memory, state = self.net.encode(batch.source, batch.source_length)
        # all hypotheses of a sentence attend to the same memory, so the search need not reorder it like the state
        beam_memory = (
            type(memory)(*(part.repeat_interleave(beam_size, 0) for part in memory)) if beam_size > 1 else memory
        )

        def step(token: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
            logits, state, _ = self.net.decode(token[:, None], beam_memory, state)
            return logits[:, 0], state

        options = {"beam_size": beam_size, "max_length": self.max_length, "length_penalty": self.length_penalty}
        return beam_search(step, state, begin=BEGIN, end=END, pad=PAD, **options)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the whole split, all translations, and the attention of a few sentences."""
        super().on_test_epoch_end()
        # a batch consists of the ranks' shares, one after another; this restores the order of the data
        texts = [row for shares in zip(*gather_objects(self._texts), strict=True) for share in shares for row in share]
        lines = ("\t".join(" ".join(text.split()) for text in row) + "\n" for row in texts)
        self.log_text("test/translations", "".join(lines))
        for number, batch in enumerate(self._attention_batches, 1):
            self._draw_attention(f"test/attention_{number}", batch)

    def _logits(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the logits (B·T, V) and the targets (B·T,), PAD past each end."""
        logits = float32_at_least(self(batch.source, batch.source_length, batch.target[:, :-1]))
        return logits.flatten(0, 1), batch.target[:, 1:].flatten()

    def _update_scores(self, batch: PairBatch, hypotheses: Hypotheses) -> None:
        logits, target = self._logits(batch)
        is_token = (target != PAD).float()
        self.mean_loss.update(F.cross_entropy(logits, target, reduction="none"), is_token)
        self.accuracy.update((logits.argmax(1) == target).float(), is_token)
        _, vocabulary = self._vocabularies
        translations = vocabulary.decode(hypotheses.token.tolist())
        references = [[text] for text in vocabulary.decode(batch.target.tolist())]
        self.bleu.update(translations, references)
        self.measure(translations, references)

    def _reset(self) -> None:
        for metric in (self.mean_loss, self.accuracy, self.bleu):
            metric.reset()
        self._attention_batches.clear()
        self._texts.clear()

    def _scores(self) -> dict[str, Tensor]:
        loss = self.mean_loss.compute()  # torchmetrics reduces over all ranks
        scores = {"loss": loss, "perplexity": loss.exp(), "accuracy": self.accuracy.compute()}
        return scores | {"bleu": 100 * self.bleu.compute()}

    def _draw_attention(self, name: str, batch: PairBatch) -> None:
        """Draw what each token of the translation attends to, from one pass over the translation."""
        token = self.translate(batch).token
        shifted = torch.cat([torch.full_like(token[:, :1], BEGIN), token[:, :-1]], dim=1)
        memory, state = self.net.encode(batch.source, batch.source_length)
        weight = self.net.decode(shifted, memory, state)[2]
        if weight is None:
            return
        source, target = self._vocabularies
        rows = [*target.pieces(token[0].tolist()), "END"][: token.shape[1]]  # no END at max_length
        columns = [*source.pieces(batch.source[0].tolist()), "END"]
        attention = weight[0].float().cpu().numpy()[: len(rows), : len(columns)]
        self.log_figure(name, lambda: plots.attention_map(attention, columns, rows))
