"""DCGAN: z (B, Z) to image (B, C, H, W) in [-1, 1] by transposed convolutions, and image to logits (B,)."""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from leyden.nets.arguments import ImageShape
from leyden.nets.gan_parts import ProjectionHead, count_doublings


class DCGANGenerator(nn.Module):
    """The generator of Radford et al. 2016 (figure 1), for square images of side 4, 5, 6 or 7 times a power of 2.

    A linear layer maps z to the smallest side, and each transposed convolution doubles the side. The last layer but one
    has `width` channels, and each layer before it has twice as many as the next. With `num_classes`, z is concatenated
    with an embedding of the label that is as long as z. Because of batch norm, each picture depends on the whole batch
    in training, but on no other picture in eval mode.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: PositiveInt,
        num_classes: PositiveInt | None = None,
        width: PositiveInt = 64,
    ) -> None:
        super().__init__()
        self.image_shape, self.latent_dim, self.num_classes = tuple(image_shape), latent_dim, num_classes
        self._side, count = count_doublings(image_shape, "generator")
        channels = [width * 2**i for i in reversed(range(count))]
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        in_features = 2 * latent_dim if num_classes else latent_dim
        self.project = nn.Linear(in_features, channels[0] * self._side**2, bias=False)  # batch norm adds the bias
        self.norm = nn.BatchNorm2d(channels[0])
        self.layers = nn.Sequential()
        for in_channels, out_channels in pairwise(channels):
            self.layers.append(nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False))
            self.layers.append(nn.BatchNorm2d(out_channels))
            self.layers.append(nn.ReLU(inplace=True))
        self.layers.append(nn.ConvTranspose2d(width, image_shape[0], 4, stride=2, padding=1))
        _initialize(self)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1]; a conditional generator needs `label` (B,)."""
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(label)], 1)  # (B, 2 Z)
        x = self.project(z).unflatten(1, (-1, self._side, self._side))  # (B, 128, 7, 7); sizes for 28x28 images
        return self.layers(F.relu(self.norm(x))).tanh()


class DCGANDiscriminator(nn.Module):
    """The discriminator of Radford et al. 2016: strided convolutions with leaky ReLU, and a linear head.

    The first layer has `width` channels, and each further layer twice as many. `norm` is `batch` for the paper's batch
    norm in all layers but the first and the last, `spectral` for spectral norm of every weight (Miyato et al. 2018), or
    `none`. With `num_classes`, the head is a projection. With `batch`, a logit depends on the other images of its
    batch. Real and fake images then pass through the net separately, and a gradient penalty depends on several images
    at once.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: PositiveInt | None = None,
        width: PositiveInt = 64,
        norm: Literal["batch", "spectral", "none"] = "batch",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        side, count = count_doublings(image_shape, "discriminator")
        channels = [image_shape[0], *(width * 2**i for i in range(count))]
        self.layers = nn.Sequential()
        for i, (in_channels, out_channels) in enumerate(pairwise(channels)):
            has_norm = norm == "batch" and i > 0
            self.layers.append(nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1, bias=not has_norm))
            if has_norm:
                self.layers.append(nn.BatchNorm2d(out_channels))
            self.layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.head = ProjectionHead(channels[-1] * side**2, num_classes)
        _initialize(self)
        if norm == "spectral":
            for module in list(self.modules()):
                if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                    spectral_norm(module)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the logits, (B,); a conditional discriminator needs `label` (B,)."""
        x = self.layers(image)  # (B, 128, 7, 7); sizes for 28x28 images
        return self.head(x.flatten(1), label)


def _initialize(net: nn.Module) -> None:
    """Draw the weights of all layers from a normal distribution with deviation 0.02 (section 4 of the paper)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1.0, std=0.02)
