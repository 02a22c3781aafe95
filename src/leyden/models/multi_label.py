"""Classification with any number of labels for each sample: a net that returns one logit per label."""

import math
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from leyden.batch import ImageBatch, SequenceBatch
from leyden.errors import UserError
from leyden.metrics.decisions import ClassScores, ScoredSamples, rank
from leyden.models.classifier import Threshold
from leyden.models.model import (
    EvaluatedModel,
    OptimizerCallable,
    ScheduleCallable,
    check_answer,
    eval_mode,
    float32_at_least,
)
from leyden.schema.field import Labels


class MultiLabelClassifier(EvaluatedModel):
    """A net trained by binary cross-entropy, averaged over labels; the last field of a batch is (B, L), 0 or 1 each.

    The net takes the other fields. A label is predicted if its probability is above its threshold: `threshold` for
    all labels, or with `f1`, for each label the threshold with the highest F1 on the validation samples, chosen at each
    validation and stored in the checkpoint.

    Logs `loss` in every stage; validation and test add the means over the labels of `precision`, `recall`, `f1`, `auc`
    and `average_precision` (the last two only over labels that some samples have and others do not), and
    `exact_match`, the share of samples with all labels right. The test also writes the scores of each label as a table.
    """

    monitor = ("val/average_precision", "max")

    def __init__(
        self,
        net: nn.Module,
        num_classes: PositiveInt,
        optimizer: OptimizerCallable,
        schedule: ScheduleCallable | None = None,
        threshold: Threshold = 0.5,
        parameter_groups: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(net, optimizer, schedule, parameter_groups=parameter_groups)
        self.num_classes = num_classes
        self.thresholds = [0.5 if threshold == "f1" else threshold] * num_classes
        self._choose_thresholds = threshold == "f1"
        self.mean_loss = MeanMetric(nan_strategy=math.nan)  # the default drops NaN losses from the mean
        self.samples = ScoredSamples()

    def setup(self, stage: str) -> None:
        """Check the data's answers.

        Raises:
            UserError: if they are not labels, or not as many as the model predicts.
        """
        check_answer(self, "labels")
        answer = self.schema and self.schema.answer
        if isinstance(answer, Labels) and len(answer.names) != self.num_classes:
            raise UserError(f"model.num_classes={self.num_classes}, but the data have {len(answer.names)} labels")

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits (B, L) for the net's inputs."""
        return self.net(*inputs)

    def training_step(self, batch: ImageBatch | SequenceBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of the batch."""
        *inputs, label = batch
        loss = F.binary_cross_entropy_with_logits(float32_at_least(self(*inputs)), label)
        self.log("train/loss", loss, batch_size=len(label))
        return loss

    def predict_step(self, batch: ImageBatch | SequenceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the `probability` (B, L) of each label, and its `prediction` (B, L), 0 or 1."""
        with torch.no_grad(), eval_mode(self.net):
            probability = self(*(x.to(self.device) for x in batch[:-1])).float().sigmoid()
        return {"probability": probability, "prediction": self._decide(probability).long()}

    def sample_scores(self, batch: ImageBatch | SequenceBatch, answers: dict[str, Any]) -> dict[str, Tensor]:
        """Return the `loss` and the `exact_match` of each sample, (B,)."""
        label = batch[-1].double().cpu()
        losses = F.binary_cross_entropy(answers["probability"].double(), label, reduction="none").mean(1)
        return {"loss": losses, "exact_match": (answers["prediction"] == label).all(1).double()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store chosen thresholds here and not in a buffer, because weight averaging would average buffers."""
        if self._choose_thresholds:
            checkpoint["thresholds"] = self.thresholds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore chosen thresholds."""
        if self._choose_thresholds:
            self.thresholds = checkpoint.get("thresholds", self.thresholds)

    def on_validation_epoch_end(self) -> None:
        """Choose the thresholds if the model is being trained, and log the scores of the whole split."""
        if self._choose_thresholds and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            scores, truths = self.samples.collect()
            self.thresholds = [rank(*column).threshold for column in zip(scores.T, truths.T, strict=True)]
        super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        """Log the scores of the whole split, and write those of each label."""
        super().on_test_epoch_end()
        answer = self.schema and self.schema.answer
        names = answer.names if isinstance(answer, Labels) else [str(k) for k in range(self.num_classes)]
        self.log_text("test/classes", self._label_scores(*self.samples.collect()).table(names))

    def _update_scores(self, batch: ImageBatch | SequenceBatch) -> None:
        *inputs, label = batch
        logits = self(*inputs).float()  # (B, L)
        self.mean_loss.update(F.binary_cross_entropy_with_logits(logits, label, reduction="none").mean(1))
        self.samples.update(logits.sigmoid(), label)

    def _reset(self) -> None:
        self.mean_loss.reset()
        self.samples.reset()

    def _scores(self) -> dict[str, Any]:
        scores, truths = self.samples.collect()
        rankings = [rank(*column) for column in zip(scores.T, truths.T, strict=True)]
        ranking_scores = {
            "auc": torch.tensor([ranking.auc for ranking in rankings]).nanmean(),
            "average_precision": torch.tensor([ranking.average_precision for ranking in rankings]).nanmean(),
        }
        exact_match = (self._decide(scores) == truths).all(1).float().mean()
        means = self._label_scores(scores, truths).means()
        return {"loss": self.mean_loss.compute(), **means, **ranking_scores, "exact_match": exact_match}

    def _decide(self, probability: Tensor) -> Tensor:
        """Return which labels are predicted, (B, L) bool."""
        return probability > torch.tensor(self.thresholds, device=probability.device)

    def _label_scores(self, scores: Tensor, truths: Tensor) -> ClassScores:
        predictions = self._decide(scores)
        return ClassScores.of((predictions & truths).sum(0), predictions.sum(0), truths.sum(0))
