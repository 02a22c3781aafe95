"""SN-ResNet GAN: z (B, Z) to image (B, C, H, W) in [-1, 1] by residual blocks, and image to logits (B,)."""

import math

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from leyden.nets.arguments import ImageShape
from leyden.nets.gan_parts import ProjectionHead, doublings


class SNGANGenerator(nn.Module):
    """The ResNet generator of Miyato et al. 2018 (table 4), for square images of side 4, 5, 6 or 7 times a power of 2.

    Each block of `width` channels doubles the side. With `num_classes`, the batch norms have a scale and a
    shift for each class (Miyato & Koyama 2018). With `width` 256 and `latent_dim` 128 it has 4,276,739 parameters
    for (3, 32, 32) images. Because of batch norm, each picture depends on the whole batch in training, but on no
    other picture in eval mode.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        latent_dim: PositiveInt,
        num_classes: PositiveInt | None = None,
        width: PositiveInt = 256,
    ) -> None:
        super().__init__()
        self.image_shape, self.latent_dim, self.num_classes = tuple(image_shape), latent_dim, num_classes
        self._side, count = doublings(image_shape, "generator")
        self.project = nn.Linear(latent_dim, width * self._side**2)
        self.blocks = nn.ModuleList(UpBlock(width, num_classes) for _ in range(count))
        self.norm = nn.BatchNorm2d(width)
        self.to_image = nn.Conv2d(width, image_shape[0], 3, padding=1)
        _initialize(self)
        nn.init.xavier_uniform_(self.to_image.weight)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1]; a conditional generator needs `label` (B,)."""
        x = self.project(z).unflatten(1, (-1, self._side, self._side))  # (B, 256, 4, 4); sizes for 32x32 images
        for block in self.blocks:
            x = block(x, label)
        return self.to_image(F.relu(self.norm(x))).tanh()


class SNGANDiscriminator(nn.Module):
    """The ResNet discriminator of Miyato et al. 2018 (table 4): every weight has spectral norm 1.

    One or more blocks of `width` channels halve the side until it is 8 or less; two further blocks keep it. The head
    reads the sums of the channels; with `num_classes` it is a projection. With `width` 128 it has 1,053,825 parameters
    for (3, 32, 32) images. No logit depends on the other images of the batch.
    """

    def __init__(
        self, image_shape: ImageShape, num_classes: PositiveInt | None = None, width: PositiveInt = 128
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        doublings(image_shape, "discriminator")  # checks the shape
        halvings = max(1, math.ceil(math.log2(image_shape[1] / 8)))
        self.blocks = nn.Sequential(
            DownBlock(image_shape[0], width, relu=False),
            *(DownBlock(width, width) for _ in range(halvings - 1)),
            PlainBlock(width),
            PlainBlock(width),
        )
        self.head = ProjectionHead(width, num_classes)
        _initialize(self)
        for module in list(self.modules()):
            if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
                spectral_norm(module)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the logits, (B,); a conditional discriminator needs `label` (B,)."""
        x = self.blocks(image)  # (B, 128, 8, 8); sizes for 32x32 images
        return self.head(F.relu(x).sum((2, 3)), label)


class ConditionalBatchNorm(nn.Module):
    """Batch norm with a scale and a shift for each class, or plain batch norm where there are no classes."""

    def __init__(self, channels: int, num_classes: int | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=num_classes is None)
        self.scale = nn.Embedding(num_classes, channels) if num_classes else None
        self.shift = nn.Embedding(num_classes, channels) if num_classes else None
        if self.scale is not None and self.shift is not None:
            nn.init.ones_(self.scale.weight)
            nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Return the normalised x, (B, C, H, W)."""
        x = self.norm(x)
        if self.scale is None or self.shift is None:
            return x
        return x * self.scale(label)[:, :, None, None] + self.shift(label)[:, :, None, None]


class UpBlock(nn.Module):
    """The generator's block (figure 8 of the paper, left, with doubling): norm, ReLU, convolution, twice."""

    def __init__(self, channels: int, num_classes: int | None) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm(channels, num_classes)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = ConditionalBatchNorm(channels, num_classes)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Return the block's output, (B, C, 2 H, 2 W)."""
        y = self.conv1(_upsample(F.relu(self.norm1(x, label))))
        y = self.conv2(F.relu(self.norm2(y, label)))
        return y + _upsample(self.shortcut(x))  # doubling after the 1x1 convolution is equal and four times cheaper


class DownBlock(nn.Module):
    """The discriminator's block that halves the side; its first block has no ReLU, since it reads the image."""

    def __init__(self, in_channels: int, out_channels: int, relu: bool = True) -> None:
        super().__init__()
        self.relu = relu
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (B, out_channels, H / 2, W / 2)."""
        y = self.conv2(F.relu(self.conv1(F.relu(x) if self.relu else x)))
        return F.avg_pool2d(y, 2) + self.shortcut(F.avg_pool2d(x, 2))


class PlainBlock(nn.Module):
    """The discriminator's block that keeps the side: ReLU and convolution, twice, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (B, C, H, W)."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _initialize(net: nn.Module) -> None:
    """Draw Glorot's uniform weights, sqrt(2) times as large in the 3x3 convolutions, as in the authors' code."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2) if module.weight.shape[-1] == 3 else 1.0)
            nn.init.zeros_(module.bias)
