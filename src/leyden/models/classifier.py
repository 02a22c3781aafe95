"""Classification: a net that gives one logit per class, its metrics and its figures."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from leyden.batch import ImageBatch, SequenceBatch
from leyden.errors import UserError
from leyden.figures import mosaics, plots
from leyden.models.model import (
    EvaluatedModel,
    OptimizerCallable,
    ScheduleCallable,
    eval_mode,
    float32_at_least,
    gather_objects,
)
from leyden.schema.field import Classes

NUM_SHOWN = 16  # pictures in a grid


Labelled = ImageBatch | SequenceBatch


class DrawnSamples(NamedTuple):
    """Test samples that will be drawn."""

    loss: Tensor  # (N,)
    image: Tensor  # (N, C, H, W)
    label: Tensor  # (N,)
    proba: Tensor  # (N, K)


class Classifier(EvaluatedModel):
    """A net trained by cross-entropy on batches whose last field is the label and whose others the net takes.

    Logs `loss` and `accuracy` in every stage; validation and test add `precision`, `recall` and `f1` as means over the
    classes, and `ece`, the expected calibration error over 15 bins (Guo et al. 2017, equation 3). The test also draws
    the confusion matrix.

    `class_weights` multiply the losses of the samples of each class, in every stage: K numbers, or `balanced`, which
    is n / (K n_k) for the n_k of n training samples that are of class k, so that every class weighs the same and the
    mean over the training samples is 1. The sum is divided by the number of samples, not by that of their weights:
    so the mean over ranks and microbatches is the mean over the batch.
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
        class_weights: Literal["balanced"] | list[NonNegativeFloat] | None = None,
    ) -> None:
        super().__init__(net, optimizer, schedule)
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
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self._weights: Tensor | None = None  # (K,); no buffer, since they follow from the data
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

    def setup(self, stage: str) -> None:
        """Make the weights of the classes.

        Raises:
            UserError: when `balanced` ones need counts that the data's schema has not, or one of them is 0.
        """
        weights = self._balanced_weights() if self.class_weights == "balanced" else self.class_weights
        if weights is not None:
            self._weights = torch.tensor(weights)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the logits (B, K) of what the net takes."""
        return self.net(*inputs)

    def predict_proba(self, *inputs: Tensor) -> Tensor:
        """Return the probability of each class, (B, K), for what the net takes, in eval mode."""
        with torch.no_grad(), eval_mode(self.net):
            return self._eval_logits(*(x.to(self.device) for x in inputs)).softmax(1)

    def training_step(self, batch: Labelled, batch_idx: int) -> Tensor:
        """Return the mean loss of the batch."""
        *inputs, label = batch
        logits = float32_at_least(self(*inputs))  # (B, K)
        loss = self._loss(logits, label)
        self.log("train/loss", loss, batch_size=len(label))
        correct = (logits.detach().argmax(1) == _classes(label)).count_nonzero()  # a third of the time of a float mean
        self.log("train/accuracy", correct / len(label), batch_size=len(label))
        return loss

    def predict_step(self, batch: Labelled, batch_idx: int) -> Tensor:
        """Return the probability of each class, (B, K)."""
        return self.predict_proba(*batch[:-1])

    def on_test_epoch_end(self) -> None:
        """Log the scores of the whole split, and draw the confusion matrix."""
        super().on_test_epoch_end()
        self._draw_confusion("test")

    def on_train_end(self) -> None:
        """Draw the confusion matrix of the last validation."""
        if self.confusion.update_called:
            self._draw_confusion("val")

    def _eval_logits(self, *inputs: Tensor) -> Tensor:
        return self(*inputs).float()

    def _count(self, batch: Labelled) -> tuple[Tensor, Tensor]:
        """Update the metrics with a batch; return its losses (B,) and probabilities (B, K)."""
        *inputs, label = batch
        logits = self._eval_logits(*inputs)  # (B, K)
        losses = self._loss(logits, label, "none")
        proba = logits.softmax(1)
        self.mean_loss.update(losses)
        self.scores.update(proba, _classes(label))
        self.confusion.update(proba, _classes(label))
        return losses, proba

    def _loss(self, logits: Tensor, label: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
        """Return the mean loss of logits (B, K), or each, (B,)."""
        smoothing = self.label_smoothing
        if self._weights is None:
            return F.cross_entropy(logits, label, label_smoothing=smoothing, reduction=reduction)
        self._weights = self._weights.to(logits)  # copies them once
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

    def _scores(self) -> dict[str, Tensor]:
        return {"loss": self.mean_loss.compute(), **self.scores.compute()}  # torchmetrics reduces over all ranks

    def _draw_confusion(self, stage: str) -> None:
        counts = self.confusion.compute().cpu().numpy()  # a collective: every rank must call it
        self.log_figure(f"{stage}/confusion", lambda: plots.confusion_matrix(counts, self._class_names()))

    def _class_names(self) -> list[str]:
        answer = self.schema and self.schema.answer
        known = answer.names if isinstance(answer, Classes) else [str(k) for k in range(self.num_classes)]
        return self.classes or known


class ImageClassifier(Classifier):
    """A classifier of images, whose test also draws the first with their predictions, and those of highest loss.

    `flip_tta` averages the logits of each picture and its mirror image everywhere but in training.
    `channels_last` stores images and weights as (B, H, W, C), which convolutions prefer on most hardware.
    The other arguments are those of `Classifier`.
    """

    def __init__(self, *args: Any, channels_last: bool = False, flip_tta: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.channels_last = channels_last
        self.flip_tta = flip_tta
        self._first: DrawnSamples | None = None
        self._highest_loss: DrawnSamples | None = None

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, C, H, W)."""
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return self.net(image)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Update the metrics with the batch, and keep the pictures that will be drawn."""
        losses, proba = self._count(batch)
        samples = DrawnSamples(losses, batch.image, _classes(batch.label), proba)
        self._first = self._first or DrawnSamples(*(field[:NUM_SHOWN].clone() for field in samples))
        self._highest_loss = highest_loss([self._highest_loss, samples], NUM_SHOWN)

    def setup(self, stage: str) -> None:
        """Make the weights of the classes, and give those of the net the memory layout of the images."""
        super().setup(stage)
        if self.channels_last:
            self.net.to(memory_format=torch.channels_last)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the whole split, and draw some pictures with their predictions."""
        super().on_test_epoch_end()
        parts = (self._first, self._highest_loss)
        local = [samples and DrawnSamples(*(field.cpu() for field in samples)) for samples in parts]
        firsts, highest_losses = zip(*gather_objects(local), strict=True)  # a batch begins with the samples of rank 0
        if samples := concatenate(firsts):
            first = DrawnSamples(*(field[:NUM_SHOWN] for field in samples))
            self.log_figure("test/predictions", partial(self._grid, first))
        if samples := highest_loss(highest_losses, NUM_SHOWN):
            self.log_figure("test/worst", partial(self._grid, samples))

    def _eval_logits(self, image: Tensor) -> Tensor:
        logits = self(image).float()
        return (logits + self(image.flip(-1)).float()) / 2 if self.flip_tta else logits

    def _reset(self) -> None:
        super()._reset()
        self._first = self._highest_loss = None

    def _grid(self, samples: DrawnSamples) -> np.ndarray:
        """Draw pictures, each scaled from its lowest to its highest value, with their true and predicted classes."""
        confidence, predicted = samples.proba.max(1)
        names = self._class_names()
        titles = [
            f"true: {names[label]}\npred: {names[guess]} ({100 * p:.0f} %)"
            for label, guess, p in zip(samples.label.tolist(), predicted.tolist(), confidence.tolist(), strict=True)
        ]
        colours = [mosaics.GREEN if is_right else mosaics.RED for is_right in (predicted == samples.label).tolist()]
        image = samples.image.float().cpu()
        low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
        pixels = ((image - low) / (high - low).clamp_min(1e-8)).numpy()
        return mosaics.mosaic(pixels, columns=8, captions=titles, inks=colours)


def concatenate(parts: Sequence[DrawnSamples | None]) -> DrawnSamples | None:
    """Return all samples in their order, None if there are none."""
    nonempty = [part for part in parts if part is not None]
    return DrawnSamples(*(torch.cat(fields) for fields in zip(*nonempty, strict=True))) if nonempty else None


def highest_loss(parts: Sequence[DrawnSamples | None], count: int) -> DrawnSamples | None:
    """Return the `count` samples with the highest loss, the highest first."""
    samples = concatenate(parts)
    if samples is None:
        return None
    order = samples.loss.topk(min(count, len(samples.loss))).indices
    return DrawnSamples(*(field[order] for field in samples))


def _classes(label: Tensor) -> Tensor:
    """Return the most likely class (B,) of labels, which are classes (B,) or class weights (B, K)."""
    return label.argmax(1) if label.ndim == 2 else label
