"""Classification of images, with figures of images and their predictions."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from leyden.batch import ImageBatch
from leyden.figures import mosaics
from leyden.models.classifier import Classifier, classes_of
from leyden.models.model import gather_objects

NUM_SHOWN = 16  # pictures in a grid


class DrawnSamples(NamedTuple):
    """Test samples that will be drawn."""

    loss: Tensor  # (N,)
    image: Tensor  # (N, C, H, W)
    label: Tensor  # (N,)
    proba: Tensor  # (N, K)


class ImageClassifier(Classifier):
    """A classifier of images, whose test also draws the first images and those of highest loss with their predictions.

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
        losses, proba = self._update_scores(batch)
        samples = DrawnSamples(losses, batch.image, classes_of(batch.label), proba)
        self._first = self._first or DrawnSamples(*(field[:NUM_SHOWN].clone() for field in samples))
        self._highest_loss = highest_loss([self._highest_loss, samples], NUM_SHOWN)

    def setup(self, stage: str) -> None:
        """Compute the class weights, and give the net's weights the memory layout of the images."""
        super().setup(stage)
        if self.channels_last:
            self.net.to(memory_format=torch.channels_last)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the whole split, and draw some pictures with their predictions."""
        super().on_test_epoch_end()
        parts = (self._first, self._highest_loss)
        local_samples = [samples and DrawnSamples(*(field.cpu() for field in samples)) for samples in parts]
        # a batch begins with the samples of rank 0
        firsts, highest_losses = zip(*gather_objects(local_samples), strict=True)
        if samples := concatenate(firsts):
            first_samples = DrawnSamples(*(field[:NUM_SHOWN] for field in samples))
            self.log_figure("test/predictions", partial(self._grid, first_samples))
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
        predictions = self._decide(samples.proba)
        confidence = samples.proba.gather(1, predictions[:, None])[:, 0]
        names = self._class_names()
        titles = [
            f"true: {names[label]}\npred: {names[prediction]} ({100 * p:.0f} %)"
            for label, prediction, p in zip(
                samples.label.tolist(), predictions.tolist(), confidence.tolist(), strict=True
            )
        ]
        colours = [mosaics.GREEN if is_right else mosaics.RED for is_right in (predictions == samples.label).tolist()]
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
