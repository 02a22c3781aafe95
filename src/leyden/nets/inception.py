"""The network that FID is defined by: image (B, 3, H, W) to features (B, 2048)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 299  # pixels of the images that the network reads


class InceptionV3(nn.Module):
    """Inception-v3 (Szegedy et al. 2016) as in TensorFlow's `inception-2015-12-05`, up to its last pooling.

    It differs from the paper where that graph does: average pooling leaves out the padding, and the last block has max
    pooling. The names of the weights are those of the file `pt_inception-2015-12-05-6726825d.pth`, which all PyTorch
    implementations of FID read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, F.avg_pool2d, count_include_pad=False)
        self.Mixed_7c = BlockE(2048, F.max_pool2d)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the file's weights, except those of its classification layer, `fc`."""
        weights = {name: value for name, value in state_dict.items() if not name.startswith("fc.")}
        return super().load_state_dict(weights, strict, assign)

    def forward(self, image: Tensor) -> Tensor:
        """Return the features (B, 2048) of pixels (B, 3, H, W) from 0 to 255, as floats."""
        x = (resize(image, SIDE) - 128) / 128  # (B, 3, 299, 299)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))  # (B, 192, 71, 71)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))  # (B, 288, 35, 35)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))  # (B, 768, 17, 17)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, 2048, 8, 8)
        return x.mean((2, 3))  # (B, 2048)


class Convolution(nn.Module):
    """Convolution, batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], **kwargs: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, bias=False, **kwargs)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return F.relu(self.bn(self.conv(x)))


class BlockA(nn.Module):
    """Figure 5: branches of 1x1, 5x5 and twice 3x3, and a mean."""

    def __init__(self, width: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(width, 64, 1)
        self.branch5x5_1 = Convolution(width, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Convolution(width, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, padding=1)
        self.branch_pool = Convolution(width, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches side by side."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_mean(x))], 1)


class BlockB(nn.Module):
    """Figure 10: the image halved by convolutions and a maximum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(width, 384, 3, stride=2)
        self.branch3x3dbl_1 = Convolution(width, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches side by side."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    """Figure 6: branches of 1x1, 7x7 and twice 7x7 as rows and columns, and a mean."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Convolution(width, 192, 1)
        self.branch7x7_1 = Convolution(width, inner, 1)
        self.branch7x7_2 = Convolution(inner, inner, **row)
        self.branch7x7_3 = Convolution(inner, 192, **column)
        self.branch7x7dbl_1 = Convolution(width, inner, 1)
        self.branch7x7dbl_2 = Convolution(inner, inner, **column)
        self.branch7x7dbl_3 = Convolution(inner, inner, **row)
        self.branch7x7dbl_4 = Convolution(inner, inner, **column)
        self.branch7x7dbl_5 = Convolution(inner, 192, **row)
        self.branch_pool = Convolution(width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches side by side."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean(x))], 1)


class BlockD(nn.Module):
    """The second halving of the image, by 3x3, 7x7 and a maximum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(width, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Convolution(width, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches side by side."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """Figure 7: branches that end in a row and a column side by side; `pool` makes the last one."""

    def __init__(self, width: int, pool: Any, **options: Any) -> None:
        super().__init__()
        row, column = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        self.branch1x1 = Convolution(width, 320, 1)
        self.branch3x3_1 = Convolution(width, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, **row)
        self.branch3x3_2b = Convolution(384, 384, **column)
        self.branch3x3dbl_1 = Convolution(width, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Convolution(384, 384, **row)
        self.branch3x3dbl_3b = Convolution(384, 384, **column)
        self.branch_pool = Convolution(width, 192, 1)
        self._pool, self._options = pool, options

    def forward(self, x: Tensor) -> Tensor:
        """Return the branches side by side."""
        three, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        split = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        split += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = self._pool(x, 3, 1, 1, **self._options)
        return torch.cat([self.branch1x1(x), *split, self.branch_pool(pooled)], 1)


def resize(image: Tensor, side: int) -> Tensor:
    """Resize (B, C, H, W) to (B, C, side, side) with TensorFlow 1's bilinear filter.

    Output pixel i stands at i * H / side of the input, so that only the top left corners meet. An image is not smoothed
    before it is made smaller.
    """
    for axis in (3, 2):  # the same order as in TensorFlow, which rounds the same
        size = image.shape[axis]
        position = torch.arange(side, device=image.device, dtype=torch.float32) * (size / side)
        low = position.long()
        high = (low + 1).clamp(max=size - 1)
        share = (position - low).to(image).reshape(-1, *[1] * (3 - axis))
        start = image.index_select(axis, low)
        image = start + (image.index_select(axis, high) - start) * share
    return image


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
