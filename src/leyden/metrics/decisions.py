"""Metrics of decisions by scores: ranking quality, the best threshold, and the precision and recall of each class."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class ScoredSamples(Metric):
    """Collects the scores (N, L), 0 to 1, and true labels (N, L) of all samples of an evaluation, on all ranks."""

    full_state_update = False
    scores: list[Tensor]
    truths: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("scores", "truths"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, truths: Tensor) -> None:
        """Add the scores and true labels of a batch, (B, L) each."""
        self.scores.append(scores)
        self.truths.append(truths.to(torch.uint8))

    def compute(self) -> Tensor:
        """Return the scores and the true labels, (2, N, L) on the CPU; torchmetrics would squeeze one of (1, 1)."""
        return torch.stack([dim_zero_cat(self.scores), dim_zero_cat(self.truths)]).cpu()

    def collect(self) -> tuple[Tensor, Tensor]:
        """Return the scores (N, L) and the true labels (N, L) bool of all ranks, on the CPU."""
        scores, truths = self.compute()
        return scores, truths.bool()


class Ranking(NamedTuple):
    """Measures of how well scores rank positive above negative samples, and the best threshold between them.

    Both measures are NaN if there are no positive samples; `auc` is also NaN if there are no negative ones.
    """

    auc: float  # the area under the ROC curve
    average_precision: float  # the sum of precision times the step in recall (Zhu 2004), not interpolated
    threshold: float  # scores above it are predicted positive; the one with the highest F1, 0.5 without positives


def rank(scores: Tensor, truths: Tensor) -> Ranking:
    """Rank samples by their scores (N,); `truths` (N,) bool marks the positive ones. Equal scores share a threshold."""
    scores, order = scores.double().sort(descending=True)
    # the last index of each group of equal scores
    last_indices = torch.cat([(scores[1:] != scores[:-1]).nonzero()[:, 0], torch.tensor([len(scores) - 1])])
    # numbers of true and of predicted positives if all samples up to each of these indices are predicted positive
    hits = truths[order].cumsum(0)[last_indices].double()
    num_predicted = (last_indices + 1).double()
    num_positives, num_negatives = hits[-1], num_predicted[-1] - hits[-1]
    start = torch.zeros(1, dtype=torch.float64)
    recall = torch.cat([start, hits / num_positives])
    fall_out = torch.cat([start, (num_predicted - hits) / num_negatives])
    f1 = 2 * hits / (num_predicted + num_positives)
    best = int(f1.argmax())
    thresholds = torch.cat([scores[last_indices], start])  # the last threshold lies between the lowest score and 0
    return Ranking(
        auc=torch.trapezoid(recall, fall_out).item(),
        average_precision=(recall.diff() * hits / num_predicted).sum().item(),
        threshold=thresholds[best : best + 2].mean().item() if num_positives else 0.5,
    )


class ClassScores(NamedTuple):
    """The scores of each of K classes, (K,) each; 0 if undefined."""

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor  # samples of the class

    @classmethod
    def of(cls, hits: Tensor, num_predicted: Tensor, support: Tensor) -> "ClassScores":
        """Compute the scores from the numbers of true positives, predictions and samples of each class, (K,) each."""
        ratios = (hits / num_predicted, hits / support, 2 * hits / (num_predicted + support))
        return cls(*(ratio.nan_to_num(0.0) for ratio in ratios), support)

    @classmethod
    def of_confusion(cls, counts: Tensor) -> "ClassScores":
        """Compute the scores from a confusion matrix (K, K): true classes in rows, predictions in columns."""
        return cls.of(counts.diagonal(), counts.sum(0), counts.sum(1))

    def means(self) -> dict[str, Tensor]:
        """Return the means over the classes."""
        return {name: getattr(self, name).mean() for name in ("precision", "recall", "f1")}

    def table(self, names: Sequence[str]) -> str:
        """Format a table with a line for each class, and one for the means."""
        width = max(map(len, ("class", *names)))
        lines = [f"{'class':{width}}  precision  recall      f1  support"]
        rows = list(zip(names, *(column.tolist() for column in self), strict=True))
        rows.append(("mean", *(mean.item() for mean in self.means().values()), int(self.support.sum())))
        lines += [f"{name:{width}}  {p:9.4f}  {r:6.4f}  {f1:6.4f}  {int(n):7,}" for name, p, r, f1, n in rows]
        return "\n".join(lines) + "\n"
