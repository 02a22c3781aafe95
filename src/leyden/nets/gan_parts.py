"""Parts that the image GANs share: the number of doublings of the feature maps, and the head of a discriminator."""

from typing import Literal

from torch import Tensor, nn

from leyden.errors import UserError
from leyden.nets.arguments import ImageShape

Part = Literal["generator", "discriminator"]


def count_doublings(image_shape: ImageShape, part: Part) -> tuple[int, int]:
    """Return the side of the smallest feature map, 4 to 7, and the number of doublings to the side of the image.

    Raises:
        UserError: if the image is not square, or its side is not 4, 5, 6 or 7 doubled at least once.
    """
    _, height, width = image_shape
    key = f"model.{part}.image_shape={tuple(image_shape)}"
    if height != width:
        raise UserError(
            f"{key} is not square, but this network needs square images; model=gan makes images of any shape"
        )
    side, count = height, 0
    while side >= 8 and side % 2 == 0:
        side, count = side // 2, count + 1
    if count == 0 or side > 7:
        raise UserError(
            f"{key} cannot be made by doubling: the side must be 4, 5, 6 or 7 times 2, 4, 8, ..., "
            f"such as 8, 28, 32, 48 or 64; model=gan makes images of any shape"
        )
    return side, count


class ProjectionHead(nn.Module):
    """Features (B, F) to logits (B,): a linear layer, plus the product with the label's embedding if there are classes.

    It is the projection head of Miyato & Koyama 2018 (equation 4).
    """

    def __init__(self, num_features: int, num_classes: int | None) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, 1)
        self.embedding = nn.Embedding(num_classes, num_features) if num_classes else None
        if self.embedding is not None:
            nn.init.normal_(
                self.embedding.weight, std=num_features**-0.5
            )  # makes the product about as large as one feature

    def forward(self, features: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the logits, (B,)."""
        logits = self.linear(features).squeeze(1)
        return logits if self.embedding is None else logits + (self.embedding(label) * features).sum(1)
