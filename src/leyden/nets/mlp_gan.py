"""The nets of a fully connected GAN: z (B, Z) to image (B, C, H, W) in [-1, 1], and image to logits (B,)."""

import math

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from leyden.nets.arguments import ImageShape


class MLPGenerator(nn.Module):
    """A fully connected generator: two hidden layers with ReLU, and tanh at the end.

    With `num_classes`, an embedding of the label, of the size of z, is appended to z (Mirza & Osindero 2014). With
    `latent_dim` 64 it has 550,416 parameters for (1, 28, 28) images. No picture depends on the others of its batch.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: PositiveInt,
        num_classes: PositiveInt | None = None,
        hidden: tuple[PositiveInt, PositiveInt] = (256, 512),
    ) -> None:
        super().__init__()
        self.image_shape, self.latent_dim, self.num_classes = tuple(image_shape), latent_dim, num_classes
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        self.layers = nn.Sequential(
            nn.Linear(2 * latent_dim if num_classes else latent_dim, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], math.prod(image_shape)),
            nn.Tanh(),
        )

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1]; a conditional generator needs `label` (B,)."""
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(label)], 1)  # (B, 2 Z)
        return self.layers(z).unflatten(1, self.image_shape)


class MLPDiscriminator(nn.Module):
    """A fully connected discriminator: two hidden layers with ReLU.

    With `num_classes`, an embedding of the label, of the size `num_classes`, is appended to the pixels. It has 233,985
    parameters for (1, 28, 28) images. No logit depends on the other images of the batch.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: PositiveInt | None = None,
        hidden: tuple[PositiveInt, PositiveInt] = (256, 128),
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding = nn.Embedding(num_classes, num_classes) if num_classes else None
        self.layers = nn.Sequential(
            nn.Linear(math.prod(image_shape) + (num_classes or 0), hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], 1),
        )

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the logits, (B,); a conditional discriminator needs `label` (B,)."""
        x = image.flatten(1)  # (B, C * H * W)
        if self.embedding is not None:
            x = torch.cat([x, self.embedding(label)], 1)
        return self.layers(x).squeeze(1)
