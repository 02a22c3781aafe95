"""R3GAN: z (B, Z) to image (B, C, H, W) in [-1, 1] by residual blocks without norms, and image to logits (B,)."""

import math
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.errors import UserError
from leyden.nets.arguments import ImageShape
from leyden.nets.gan_parts import Part, count_doublings

SLOPE = 0.2  # slope of leaky ReLU below zero
GAIN = math.sqrt(2 / (1 + SLOPE**2))  # gain with which weights before leaky ReLU preserve the variance (He et al. 2015)


class Stages(nn.Module):
    """The base of the generator and the discriminator, with the sides and the widths of their stages.

    Raises:
        UserError: if doubling cannot make an image of this shape, or `group_size` does not divide a block's channels.
    """

    def __init__(
        self,
        part: Part,
        image_shape: ImageShape,
        num_classes: PositiveInt | None = None,
        width: PositiveInt = 768,
        growth: PositiveInt = 2,
        max_width: PositiveInt = 768,
        num_blocks: PositiveInt = 2,
        expansion: PositiveInt = 2,
        group_size: PositiveInt = 16,
        patch: Literal[1, 2, 4] = 1,
    ) -> None:
        super().__init__()
        smallest_side, count = count_doublings(image_shape, part)
        count -= int(math.log2(patch))
        if count < 0:
            raise UserError(
                f"model.{part}.patch={patch} is too large for images of side {image_shape[1]}, whose smallest maps "
                f"have side {smallest_side}; the largest that fits is {image_shape[1] // smallest_side}"
            )
        self._sides = [smallest_side * 2**i for i in range(count + 1)]  # smallest first
        self._widths = [min(max_width, width * growth**i) for i in reversed(range(count + 1))]
        for channels in self._widths:
            if expansion * channels % group_size:
                raise UserError(
                    f"model.{part}.group_size={group_size} does not divide the {expansion * channels} channels in the "
                    f"blocks of a stage: model.{part}.expansion={expansion} times {channels}"
                )
        self.num_classes, self.patch = num_classes, patch
        self._num_blocks, self._expansion, self._group_size = num_blocks, expansion, group_size

    def make_stage(self, channels: int) -> nn.Sequential:
        """Return a stage of residual blocks."""
        depth = self._num_blocks * len(self._widths)
        blocks = (ResidualBlock(channels, self._expansion, self._group_size, depth) for _ in range(self._num_blocks))
        return nn.Sequential(*blocks)


class R3GANGenerator(Stages):
    """The generator of Huang et al. 2024 (arXiv 2501.05441, section 4), for sides of 4, 5, 6 or 7 times a power of 2.

    A linear map of z scales the channels of a learned basis, the smallest feature maps. Each side has a stage of
    `num_blocks` residual blocks. The last stage has `width` channels; each stage before has `growth` times as many as
    the next, but at most `max_width`. `expansion` and `group_size` are those of `ResidualBlock`. Each pixel of the last
    stage becomes a patch of `patch` x `patch` pixels of the image. With `num_classes`, z is concatenated with an
    embedding of the label that is as long as z. No picture depends on the others of its batch.

    The first stage should have `latent_dim` channels or more, since z gives each of them one number. The defaults
    are the paper's for CIFAR-10. The tanh at the end, which keeps the pixels in [-1, 1], is not in the paper.
    """

    def __init__(
        self, image_shape: ImageShape, latent_dim: PositiveInt, num_classes: PositiveInt | None = None, **kwargs: Any
    ) -> None:
        super().__init__("generator", image_shape, num_classes, **kwargs)
        self.image_shape, self.latent_dim = tuple(image_shape), latent_dim
        sides, widths = self._sides, self._widths
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        self.weigh = _init_layer(nn.Linear(2 * latent_dim if num_classes else latent_dim, widths[0], bias=False))
        self.basis = nn.Parameter(torch.randn(widths[0], sides[0], sides[0]))
        self.stages = nn.ModuleList(self.make_stage(channels) for channels in widths)
        self.doubles = nn.ModuleList(
            nn.Sequential(_conv1x1(in_channels, out_channels), Resample(side, 2 * side))
            for in_channels, out_channels, side in zip(widths[:-1], widths[1:], sides[:-1], strict=True)
        )
        self.to_image = _init_layer(nn.Conv2d(widths[-1], image_shape[0] * self.patch**2, 1))

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return images (B, C, H, W) in [-1, 1]; a conditional generator needs `label` (B,)."""
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(label)], 1)  # (B, 2 Z)
        x = self.weigh(z)[:, :, None, None] * self.basis  # (B, 768, 4, 4); sizes for 32x32 images
        x = self.stages[0](x)
        for double, stage in zip(self.doubles, self.stages[1:], strict=True):
            x = stage(double(x))  # (B, 768, 8, 8), (B, 768, 16, 16), (B, 768, 32, 32)
        return F.pixel_shuffle(self.to_image(x), self.patch).tanh()


class R3GANDiscriminator(Stages):
    """The discriminator of Huang et al. 2024 (arXiv 2501.05441, section 4): the mirror image of the generator.

    The last feature maps are weighted by a learned basis, summed over their pixels, and mapped linearly to the logit.
    With `num_classes` they are mapped to a vector instead, whose inner product with the label's embedding is the logit.
    No logit depends on the other images of the batch.
    """

    def __init__(self, image_shape: ImageShape, num_classes: PositiveInt | None = None, **kwargs: Any) -> None:
        super().__init__("discriminator", image_shape, num_classes, **kwargs)
        sides, widths = self._sides, self._widths
        self.from_image = _init_layer(nn.Conv2d(image_shape[0] * self.patch**2, widths[-1], 1))
        self.stages = nn.ModuleList(self.make_stage(channels) for channels in reversed(widths))
        self.halves = nn.ModuleList(
            nn.Sequential(Resample(side, side // 2), _conv1x1(in_channels, out_channels))
            for out_channels, in_channels, side in reversed(list(zip(widths[:-1], widths[1:], sides[1:], strict=True)))
        )
        self.basis = nn.Parameter(torch.randn(widths[0], sides[0], sides[0]) / sides[0])
        self.weigh = _init_layer(nn.Linear(widths[0], widths[0] if num_classes else 1, bias=False))
        self.embedding = nn.Embedding(num_classes, widths[0]) if num_classes else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=widths[0] ** -0.5)

    def forward(self, image: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the logits, (B,); a conditional discriminator needs `label` (B,)."""
        x = self.from_image(F.pixel_unshuffle(image, self.patch))  # (B, 768, 32, 32); sizes for 32x32 images
        for stage, halve in zip(self.stages[:-1], self.halves, strict=True):
            x = halve(stage(x))  # (B, 768, 16, 16), (B, 768, 8, 8), (B, 768, 4, 4)
        x = (self.stages[-1](x) * self.basis).sum((2, 3))  # (B, 768)
        x = self.weigh(x)
        return x.squeeze(1) if self.embedding is None else (x * self.embedding(label)).sum(1)


class ResidualBlock(nn.Module):
    """An inverted bottleneck: 1x1 to `expansion` times the channels, 3x3 in groups, 1x1 back, added to the input.

    There are no norms. To keep deep nets stable at the start, the last convolution starts at zero, and the other
    weights are smaller the more blocks there are (`depth`; Fixup, Zhang et al. 2019).
    """

    def __init__(self, channels: int, expansion: int, group_size: int, depth: int) -> None:
        super().__init__()
        inner_channels, gain = expansion * channels, GAIN * depth**-0.25
        self.conv1 = _init_layer(nn.Conv2d(channels, inner_channels, 1), gain)
        groups = inner_channels // group_size
        self.conv2 = _init_layer(nn.Conv2d(inner_channels, inner_channels, 3, padding=1, groups=groups), gain)
        self.conv3 = _init_layer(nn.Conv2d(inner_channels, channels, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (B, C, H, W)."""
        y = F.leaky_relu(self.conv1(x), SLOPE)
        y = F.leaky_relu(self.conv2(y), SLOPE)
        return x + self.conv3(y)


class Resample(nn.Module):
    """Bilinear halving or doubling of the sides, by products with one matrix from the left and from the right.

    Halving has the filter (1, 3, 3, 1) / 8 at every other pixel, with zeros outside; doubling is its transpose,
    doubled. Matrix products are fast to differentiate twice, as gradient penalties do.
    """

    matrix: Tensor

    def __init__(self, side: int, new_side: int) -> None:
        super().__init__()
        large, small = max(side, new_side), min(side, new_side)
        distance = torch.arange(large) - 2 * torch.arange(small)[:, None] - 0.5  # from the middle of each pair
        halving = (2 - distance.abs()).clamp(min=0) / 4  # (small, large)
        self.register_buffer("matrix", halving if new_side == small else 2 * halving.T, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the resampled maps, (B, C, new_side, new_side)."""
        return self.matrix @ x @ self.matrix.T


def _conv1x1(in_channels: int, out_channels: int) -> nn.Module:
    is_same = in_channels == out_channels
    return nn.Identity() if is_same else _init_layer(nn.Conv2d(in_channels, out_channels, 1, bias=False))


def _init_layer(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> nn.Conv2d | nn.Linear:
    """Draw weights that make outputs `gain` times as large as the inputs, and set the bias to zero."""
    nn.init.normal_(layer.weight, std=gain * layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
