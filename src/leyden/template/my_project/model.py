"""A small convolutional net, and the model that trains it."""

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.batch import ImageBatch
from leyden.models import Model


class TextureNet(nn.Module):
    """Two convolutions, a mean over the picture, a linear layer: (B, C, H, W) to logits (B, K)."""

    def __init__(
        self,
        image_shape: tuple[PositiveInt, PositiveInt, PositiveInt],
        num_classes: PositiveInt,
        width: PositiveInt,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(image_shape[0], width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.logits = nn.Linear(width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        x = F.relu(self.conv1(image))  # (B, width, H, W)
        x = F.relu(self.conv2(x))
        return self.logits(x.mean((2, 3)))


class PictureClassifier(Model):
    """A net trained by cross-entropy; logs `loss` and `accuracy` in every stage.

    The base class takes the net, the optimizer and the schedule, and builds the optimizer.
    """

    monitor = ("val/accuracy", "max")  # the best checkpoint is the one where this is highest

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of the batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Log the loss and accuracy of the batch; Lightning averages over all batches."""
        self._step(batch, "val")

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Log the loss and accuracy of the batch; Lightning averages over all batches."""
        self._step(batch, "test")

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Return the probability of each class, (B, K), for `leyden predict` and `leyden evaluate`."""
        return self.net(batch.image).softmax(1)

    def _step(self, batch: ImageBatch, stage: str) -> Tensor:
        logits = self.net(batch.image)  # (B, K)
        loss = F.cross_entropy(logits, batch.label)
        accuracy = (logits.argmax(1) == batch.label).float().mean()
        self.log(f"{stage}/loss", loss, batch_size=len(batch.label))
        self.log(f"{stage}/accuracy", accuracy, batch_size=len(batch.label))
        return loss
