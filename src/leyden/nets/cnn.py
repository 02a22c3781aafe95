"""Plain convolutional networks: image (B, C, H, W) to logits (B, K)."""

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.errors import UserError
from leyden.nets.arguments import ImageShape, Probability


class ConvNet(nn.Module):
    """Two convolutions and three fully connected layers, after LeNet-5 (LeCun et al. 1998, figure 2).

    The image is zero-padded to a square of `input_size`. The first convolution has `width` channels, the second has 8/3
    times as many: 6 and 16 in the original. Dropout follows both hidden layers; the original has none. With the
    defaults, 61,706 parameters for (1, 28, 28) images of 10 classes, and 62,006 for (3, 32, 32).
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: PositiveInt,
        width: PositiveInt = 6,
        kernel_size: PositiveInt = 5,
        input_size: PositiveInt = 32,
        hidden: tuple[PositiveInt, PositiveInt] = (120, 84),
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        channels, height, image_width = image_shape
        min_size = max(height, image_width, 3 * kernel_size + 1)  # two convolutions and two poolings need the last
        if input_size < min_size:
            raise UserError(
                f"model.net.input_size={input_size} is too small for {height}x{image_width} images and "
                f"model.net.kernel_size={kernel_size}; set it to {min_size} or more"
            )
        side = ((input_size - kernel_size + 1) // 2 - kernel_size + 1) // 2
        top, left = (input_size - height) // 2, (input_size - image_width) // 2
        self._padding = (left, input_size - image_width - left, top, input_size - height - top)
        conv2_channels = width * 8 // 3
        self.conv1 = nn.Conv2d(channels, width, kernel_size)
        self.conv2 = nn.Conv2d(width, conv2_channels, kernel_size)
        self.fc1 = nn.Linear(conv2_channels * side * side, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], num_classes)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def features(self, image: Tensor) -> Tensor:
        """Return the last hidden layer, (B, hidden[1])."""
        x = F.pad(image, self._padding)  # (B, C, 32, 32); sizes for the defaults
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (B, 6, 14, 14)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (B, 16, 5, 5)
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))  # (B, 120)
        return self.dropout(F.relu(self.fc2(x)))  # (B, 84)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        return self.fc3(self.features(image))
