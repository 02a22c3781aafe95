"""Residual networks for small images: image (B, C, H, W) to logits (B, K)."""

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.errors import UserError
from leyden.nets.arguments import ImageShape


class ResNet9(nn.Module):
    """The nine-layer network of David Page's DAWNBench entry ("How to train your ResNet", 2018).

    Four blocks of convolution, batch norm and ReLU have 1, 2, 4 and 8 times `width` channels. The last three end with
    a max pool, and the second and the fourth are followed by a residual pair of such blocks. The logits are multiplied
    by `scale`. With the defaults, 6,573,120 parameters for (3, 32, 32) images of 10 classes.
    """

    def __init__(
        self, image_shape: ImageShape, num_classes: PositiveInt, width: PositiveInt = 64, scale: PositiveFloat = 0.125
    ) -> None:
        super().__init__()
        channels, height, image_width = image_shape
        if min(height, image_width) < 8:
            raise UserError(
                f"model.net.image_shape={tuple(image_shape)} is too small for ResNet9, which halves "
                f"the image three times; choose model=convnet for images below 8x8"
            )
        self.prepare = _conv_bn_relu(channels, width)
        self.block1 = _conv_bn_relu(width, 2 * width)
        self.residual1 = nn.Sequential(_conv_bn_relu(2 * width, 2 * width), _conv_bn_relu(2 * width, 2 * width))
        self.block2 = _conv_bn_relu(2 * width, 4 * width)
        self.block3 = _conv_bn_relu(4 * width, 8 * width)
        self.residual3 = nn.Sequential(_conv_bn_relu(8 * width, 8 * width), _conv_bn_relu(8 * width, 8 * width))
        self.head = nn.Linear(8 * width, num_classes, bias=False)
        self.scale = scale

    def features(self, image: Tensor) -> Tensor:
        """Return the pooled last block, (B, 8 * width)."""
        x = self.prepare(image)  # (B, 64, 32, 32); sizes for width 64 and 32x32 images
        x = F.max_pool2d(self.block1(x), 2)  # (B, 128, 16, 16)
        x = x + self.residual1(x)
        x = F.max_pool2d(self.block2(x), 2)  # (B, 256, 8, 8)
        x = F.max_pool2d(self.block3(x), 2)  # (B, 512, 4, 4)
        x = x + self.residual3(x)
        return x.amax((2, 3))  # (B, 512)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        return self.scale * self.head(self.features(image))


class ResNet18(nn.Module):
    """The 18-layer residual network of He et al. 2016 (table 1), with the stem that suits small images.

    The stem is one 3x3 convolution and no pooling, as in their CIFAR networks (section 4.2). Four stages of
    two blocks have 1, 2, 4 and 8 times `width` channels; the last three halve the image. With the defaults,
    11,173,962 parameters for (3, 32, 32) images of 10 classes.
    """

    def __init__(self, image_shape: ImageShape, num_classes: PositiveInt, width: PositiveInt = 64) -> None:
        super().__init__()
        self.stem = _conv_bn_relu(image_shape[0], width)
        self.stages = nn.Sequential(
            nn.Sequential(BasicBlock(width, width, 1), BasicBlock(width, width, 1)),
            nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width, 1)),
            nn.Sequential(BasicBlock(2 * width, 4 * width, 2), BasicBlock(4 * width, 4 * width, 1)),
            nn.Sequential(BasicBlock(4 * width, 8 * width, 2), BasicBlock(8 * width, 8 * width, 1)),
        )
        self.head = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, equation 14
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, image: Tensor) -> Tensor:
        """Return the pooled last stage, (B, 8 * width)."""
        x = self.stem(image)  # (B, 64, 32, 32); sizes for width 64 and 32x32 images
        x = self.stages(x)  # (B, 512, 4, 4)
        return x.mean((2, 3))  # (B, 512)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        return self.head(self.features(image))


class SmallResNet(nn.Module):
    """A residual network for small grey images on a CPU: 90,058 parameters for (1, 28, 28) images of 10 classes.

    Pooling comes before widening, so that a step costs few multiplications. The two residual blocks start as
    the identity (Goyal et al. 2017, section 5.1). The logits read means and maxima of the last channels.
    """

    def __init__(
        self, image_shape: ImageShape, num_classes: PositiveInt, width: tuple[PositiveInt, PositiveInt] = (24, 60)
    ) -> None:
        super().__init__()
        channels, height, image_width = image_shape
        if min(height, image_width) < 4:
            raise UserError(
                f"model.net.image_shape={tuple(image_shape)} is too small for SmallResNet, which needs 4x4 or more"
            )
        narrow, wide = width
        self.stem = nn.Conv2d(channels, narrow, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(narrow)
        self.block1 = BasicBlock(narrow, narrow, 1)
        self.widen = _conv_bn_relu(narrow, wide)
        self.block2 = BasicBlock(wide, wide, 1)
        self.head = nn.Linear(2 * wide, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for block in (self.block1, self.block2):
            nn.init.zeros_(block.norm2.weight)

    def features(self, image: Tensor) -> Tensor:
        """Return the pooled last block, (B, 2 * width[1])."""
        x = F.max_pool2d(self.stem(image), 2)  # (B, 24, 14, 14); sizes for 28x28 images
        x = self.block1(F.relu(self.norm(x)))
        x = self.block2(self.widen(F.max_pool2d(x, 2)))  # (B, 60, 7, 7)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)  # (B, 120)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        return self.head(self.features(image))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions added to their input (He et al. 2016, figure 5 left).

    Where the shape changes, a 1x1 convolution maps the input first (their option B).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (B, out_channels, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        # a strided 1x1 convolution of few channels corrupts memory in torch 2.13's CPU kernels; slicing is equivalent
        shortcut = self.shortcut(x[:, :, :: self.stride, :: self.stride])
        return F.relu(self.norm2(self.conv2(y)) + shortcut)


def _conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
