"""Inception-v3, the network that defines FID: image (B, 3, H, W) to features (B, 2048)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 299  # side of the network's input images, in pixels
POINT, SQUARE, ROW, COLUMN = (1, 1), (3, 3), (1, 7), (7, 1)  # kernels
Step = tuple  # number of channels, then one kernel or two


class InceptionV3(nn.Module):
    """Inception-v3 (Szegedy et al. 2016) as in TensorFlow's `inception-2015-12-05`, up to its last pooling.

    It differs from the paper as that graph does: average pooling ignores the padding, and the last block has max
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
        self.Mixed_5b = block_a(192, 32)
        self.Mixed_5c = block_a(256, 64)
        self.Mixed_5d = block_a(288, 64)
        self.Mixed_6a = Block(
            288, None, branch3x3=[(384, SQUARE)], branch3x3dbl=[(64, POINT), (96, SQUARE), (96, SQUARE)]
        )  # figure 10 of the paper
        self.Mixed_6b = block_c(128)
        self.Mixed_6c = block_c(160)
        self.Mixed_6d = block_c(160)
        self.Mixed_6e = block_c(192)
        self.Mixed_7a = Block(
            768,
            None,
            branch3x3=[(192, POINT), (320, SQUARE)],
            branch7x7x3=[(192, POINT), (192, ROW), (192, COLUMN), (192, SQUARE)],
        )
        self.Mixed_7b = block_e(1280, mean=True)
        self.Mixed_7c = block_e(2048, mean=False)

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
        """Return the output, (B, out_channels, H', W')."""
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Parallel branches over the same input: chains of convolutions, and a pooling.

    A step of a chain is its number of channels and a kernel; the last step may have two parallel kernels. The
    convolutions of a chain `name` are called name_1, name_2a, name_2b, …; a chain of one convolution is called `name`.
    The pooling is the mean or the maximum, then a convolution to `pooled` channels. Without `pooled` it is the maximum
    alone, and both the pooling and the last step of each chain halve the image.
    """

    def __init__(self, in_channels: int, pooled: int | None, mean: bool = True, **chains: list[Step]) -> None:
        super().__init__()
        self._mean = mean
        self._chains: list[list[list[str]]] = []  # the names of the convolutions of each step
        for name, chain in chains.items():
            channels, names = in_channels, []
            for number, (out_channels, *kernels) in enumerate(chain, 1):
                step = name if len(chain) == 1 else f"{name}_{number}"
                names.append([step + letter for letter in ("ab" if len(kernels) == 2 else [""])])
                halves = pooled is None and number == len(chain)
                for convolution, (height, width) in zip(names[-1], kernels, strict=True):
                    options = {"stride": 2} if halves else {"padding": (height // 2, width // 2)}
                    self.add_module(convolution, Convolution(channels, out_channels, (height, width), **options))
                channels = out_channels
            self._chains.append(names)
        self.branch_pool = Convolution(in_channels, pooled, 1) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of all branches, concatenated along the channels."""
        branches = []
        for names in self._chains:
            outputs = [x]
            for step in names:
                outputs = [self.get_submodule(name)(outputs[0]) for name in step]
            branches += outputs
        if self.branch_pool is None:
            return torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if self._mean else F.max_pool2d(x, 3, 1, 1)
        return torch.cat([*branches, self.branch_pool(pooled)], 1)


def block_a(in_channels: int, pooled: int) -> Block:
    """Build the block of figure 5 in the paper."""
    double = [(64, POINT), (96, SQUARE), (96, SQUARE)]
    return Block(
        in_channels, pooled, branch1x1=[(64, POINT)], branch5x5=[(48, POINT), (64, (5, 5))], branch3x3dbl=double
    )


def block_c(channels: int) -> Block:
    """Build the block of figure 6 in the paper."""
    single = [(channels, POINT), (channels, ROW), (192, COLUMN)]
    double = [(channels, POINT), (channels, COLUMN), (channels, ROW), (channels, COLUMN), (192, ROW)]
    return Block(768, 192, branch1x1=[(192, POINT)], branch7x7=single, branch7x7dbl=double)


def block_e(in_channels: int, mean: bool) -> Block:
    """Build the block of figure 7 in the paper."""
    last_step = (384, (1, 3), (3, 1))
    single, double = [(384, POINT), last_step], [(448, POINT), (384, SQUARE), last_step]
    return Block(in_channels, 192, mean, branch1x1=[(320, POINT)], branch3x3=single, branch3x3dbl=double)


def resize(image: Tensor, side: int) -> Tensor:
    """Resize (B, C, H, W) to (B, C, side, side) with TensorFlow 1's bilinear filter.

    Output pixel i is read at i * H / side of the input, so that only the top left corners coincide. An image is not
    smoothed before it is made smaller.
    """
    for axis in (3, 2):  # in TensorFlow's order, so that results round the same
        size = image.shape[axis]
        position = torch.arange(side, device=image.device, dtype=torch.float32) * (size / side)
        low = position.long()
        high = (low + 1).clamp(max=size - 1)
        fraction = (position - low).to(image).reshape(-1, *[1] * (3 - axis))
        start = image.index_select(axis, low)
        image = start + (image.index_select(axis, high) - start) * fraction
    return image
