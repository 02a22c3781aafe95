"""Classification: a net that returns one logit per class, its metrics and its figures."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from leyden.batch import ImageBatch, PassageBatch, SequenceBatch
from leyden.errors import UserError
from leyden.figures import plots
from leyden.metrics.decisions import ClassScores, ScoredSamples, rank
from leyden.models.model import (
    EvaluatedModel,
    OptimizerCallable,
    ScheduleCallable,
    check_answer,
    eval_mode,
    float32_at_least,
)
from leyden.schema.field import Classes

LabelledBatch = ImageBatch | SequenceBatch | PassageBatch
Threshold = Annotated[float, Field(gt=0, lt=1)] | Literal["f1"]  # f1: chosen on validation


class Classifier(EvaluatedModel):
    """A net trained by cross-entropy on batches of the net's inputs followed by the label.

    Logs `loss` and `accuracy` in every stage; validation and test add `precision`, `recall` and `f1` as means over the
    classes, and `ece`, the expected calibration error over 15 bins (Guo et al. 2017, equation 3). The test also draws
    the confusion matrix, and writes the scores of each class as a table. Further `metrics` are updated with the
    probabilities (B, K) and the classes (B,).

    With two classes, the second is predicted if its probability is above `threshold`: a number, or `f1`, the
    threshold with the highest F1 of the second class on the validation samples, chosen at each validation and stored in
    the checkpoint. Validation and test score these predictions; `train/accuracy` scores the more probable class. They
    also log the `auc` and the `average_precision` of the second class, and with `f1` the `threshold`.

    `class_weights` multiply the losses of the samples of each class, in every stage: K numbers, or `balanced`, which
    gives class k the weight n / (K n_k) if n_k of the n training samples belong to it. All classes then have the same
    total weight, and the mean weight of the training samples is 1. The sum of losses is divided by the number of
    samples, not by the sum of weights, so that the mean over ranks and microbatches is the mean over the batch.
    """

    monitor = ("val/accuracy", "max")

    def __init__(
        self,
        net: nn.Module,
        num_classes: PositiveInt,
        optimizer: OptimizerCallable,
        schedule: ScheduleCallable | None = None,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        classes: list[str] | None = None,
        metrics: dict[str, Metric] | None = None,
        class_weights: Literal["balanced"] | list[NonNegativeFloat] | None = None,
        threshold: Threshold = 0.5,
        parameter_groups: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(net, optimizer, schedule, metrics, parameter_groups)
        if classes is not None and len(classes) != num_classes:
            raise UserError(
                f"model.classes holds {len(classes)} names, but model.num_classes={num_classes}; "
                f"name every class once, or leave model.classes out"
            )
        if isinstance(class_weights, list) and len(class_weights) != num_classes:
            raise UserError(
                f"model.class_weights holds {len(class_weights)} numbers, but model.num_classes={num_classes}; "
                f"give one for each class, or balanced"
            )
        if threshold != 0.5 and num_classes != 2:
            raise UserError(
                f"model.threshold={threshold} decides between two classes, but model.num_classes={num_classes}; "
                "leave it out: the most probable class is chosen"
            )
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self._weights: Tensor | None = None  # (K,); not in a buffer, since they are computed from the data
        self.classes = classes
        self.num_classes = num_classes
        # validate_args=False, since each check would wait for the device; the data module checks the labels
        macro = {"num_classes": num_classes, "average": "macro", "validate_args": False}
        self.scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
                "precision": MulticlassPrecision(**macro),
                "recall": MulticlassRecall(**macro),
                "f1": MulticlassF1Score(**macro),
                "ece": MulticlassCalibrationError(num_classes, validate_args=False),
            }
        )
        self.mean_loss = MeanMetric(nan_strategy=math.nan)  # the default drops NaN losses from the mean
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.threshold = 0.5 if threshold == "f1" else threshold
        self._choose_threshold = threshold == "f1"
        self.samples = ScoredSamples() if num_classes == 2 else None

    def setup(self, stage: str) -> None:
        """Compute the class weights.

        Raises:
            UserError: if the data's answers are not classes, or if weights are `balanced` and the schema does not count
                the training samples of each class, or a class has none.
        """
        check_answer(self, "classes")
        weights = self._balanced_weights() if self.class_weights == "balanced" else self.class_weights
        if weights is not None:
            self._weights = torch.tensor(weights)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits (B, K) for the net's inputs."""
        return self.net(*inputs)

    def predict_proba(self, *inputs: Tensor) -> Tensor:
        """Return the class probabilities (B, K) for the net's inputs, in eval mode."""
        with torch.no_grad(), eval_mode(self.net):
            return self._eval_logits(*(x.to(self.device) for x in inputs)).softmax(1)

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of the batch."""
        *inputs, label = batch
        logits = float32_at_least(self(*inputs))  # (B, K)
        loss = self._loss(logits, label)
        self.log("train/loss", loss, batch_size=len(label))
        self.meters.add_hits("train/accuracy", logits.detach().argmax(1) == classes_of(label))
        return loss

    def predict_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor | dict[str, Tensor]:
        """Return the class probabilities (B, K); with two classes, a dict of `probability` and `prediction` (B,)."""
        proba = self.predict_proba(*batch[:-1])
        return proba if self.samples is None else {"probability": proba, "prediction": self._decide(proba)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store a chosen threshold here and not in a buffer, because weight averaging would average buffers."""
        if self._choose_threshold:
            checkpoint["threshold"] = self.threshold

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore a chosen threshold."""
        if self._choose_threshold:
            self.threshold = checkpoint.get("threshold", self.threshold)

    def on_validation_epoch_end(self) -> None:
        """Choose the threshold if the model is being trained, and log the scores of the whole split."""
        is_training = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        if self._choose_threshold and self.samples and is_training:
            scores, truths = self.samples.collect()
            self.threshold = rank(scores[:, 0], truths[:, 0]).threshold
        super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        """Log the scores of the whole split and of each class, and draw the confusion matrix."""
        super().on_test_epoch_end()
        self._draw_confusion("test")
        self.log_text("test/classes", ClassScores.of_confusion(self._compute_confusion()).table(self._class_names()))

    def on_train_end(self) -> None:
        """Draw the confusion matrix of the last validation."""
        if self.confusion.update_called:
            self._draw_confusion("val")

    def _eval_logits(self, *inputs: Tensor) -> Tensor:
        return self(*inputs).float()

    def _update_scores(self, batch: LabelledBatch) -> tuple[Tensor, Tensor]:
        """Update the metrics with a batch; return its losses (B,) and probabilities (B, K)."""
        *inputs, label = batch
        logits = self._eval_logits(*inputs)  # (B, K)
        losses = self._loss(logits, label, "none")
        proba = logits.softmax(1)
        self.mean_loss.update(losses)
        self.scores.update(proba, classes_of(label))
        self.confusion.update(proba, classes_of(label))
        self.measure(proba, classes_of(label))
        if self.samples:
            self.samples.update(proba[:, 1:], classes_of(label)[:, None])
        return losses, proba

    def _loss(self, logits: Tensor, label: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
        """Return the mean loss of logits (B, K), or with `none` the loss of each sample, (B,)."""
        smoothing = self.label_smoothing
        if self._weights is None:
            return F.cross_entropy(logits, label, label_smoothing=smoothing, reduction=reduction)
        self._weights = self._weights.to(logits)  # copied only the first time
        losses = F.cross_entropy(logits, label, self._weights, label_smoothing=smoothing, reduction="none")
        return losses.mean() if reduction == "mean" else losses

    def _balanced_weights(self) -> list[float]:
        answer = self.schema and self.schema.answer
        if not isinstance(answer, Classes):
            reason = "needs data whose schema counts the training samples of each class"
            raise UserError(f"model.class_weights=balanced {reason}: give a list of {self.num_classes} numbers")
        if 0 in answer.counts:
            name = self._class_names()[answer.counts.index(0)]
            raise UserError(f"model.class_weights=balanced: no training sample is of the class {name!r}; give a list")
        return [sum(answer.counts) / (self.num_classes * count) for count in answer.counts]

    def _reset(self) -> None:
        self.mean_loss.reset()
        self.scores.reset()
        self.confusion.reset()
        if self.samples:
            self.samples.reset()

    def _scores(self) -> dict[str, Any]:
        scores = {"loss": self.mean_loss.compute(), **self.scores.compute()}  # torchmetrics reduces over all ranks
        if self.samples is None:
            return scores
        probability, is_second = self.samples.collect()
        ranking = rank(probability[:, 0], is_second[:, 0])
        rank_scores = {"auc": ranking.auc, "average_precision": ranking.average_precision}
        confusion = self._compute_confusion()
        decisions = {"accuracy": confusion.trace() / confusion.sum(), **ClassScores.of_confusion(confusion).means()}
        threshold_score = {"threshold": self.threshold} if self._choose_threshold else {}
        return {**scores, **decisions, **rank_scores, **threshold_score}

    def _decide(self, proba: Tensor) -> Tensor:
        """Return the predicted classes (B,) for probabilities (B, K)."""
        return proba.argmax(1) if self.samples is None else (proba[:, 1] > self.threshold).long()

    def _compute_confusion(self) -> Tensor:
        """Return how often each true class (row) was predicted as each class (column), (K, K), over all ranks."""
        if self.samples is None:
            return self.confusion.compute()
        probability, is_second = self.samples.collect()
        cells = 2 * is_second[:, 0] + (probability[:, 0] > self.threshold)
        return cells.long().bincount(minlength=4).view(2, 2)

    def _draw_confusion(self, stage: str) -> None:
        counts = self._compute_confusion().cpu().numpy()  # a collective: every rank must call it
        self.log_figure(f"{stage}/confusion", lambda: plots.confusion_matrix(counts, self._class_names()))

    def _class_names(self) -> list[str]:
        answer = self.schema and self.schema.answer
        default_names = answer.names if isinstance(answer, Classes) else [str(k) for k in range(self.num_classes)]
        return self.classes or default_names


def classes_of(label: Tensor) -> Tensor:
    """Return the most likely class (B,) of labels, which are classes (B,) or class weights (B, K)."""
    return label.argmax(1) if label.ndim == 2 else label
