"""The image networks of PyTorch Image Models: image (B, C, H, W) to logits (B, K)."""

import difflib
from typing import Any

from pydantic import PositiveInt
from torch import Tensor, nn

from leyden.errors import UserError
from leyden.nets.arguments import ImageShape

PATH_OPTIONS = ("cache_dir", "checkpoint_path")  # options of timm that are paths


class Timm(nn.Module):
    """The network that timm calls `model_name`.

    `pretrained` fetches its published weights. `options` go to `timm.create_model` as they are, for instance
    `{img_size: 32}`, which transformers need and convolutional networks refuse.
    """

    def __init__(
        self,
        model_name: str,
        image_shape: ImageShape,
        num_classes: PositiveInt,
        pretrained: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if keys := sorted(key for key in options or {} if key.startswith("pretrained") or key in PATH_OPTIONS):
            raise UserError(f"model.net.options.{keys[0]} is not allowed; pretrained=true loads timm's weights")
        try:
            import timm  # pyrefly: ignore[missing-import]
        except ImportError as error:
            raise UserError(
                f"model.net.model_name={model_name} needs the package timm; pip install 'leyden[timm]'"
            ) from error
        if not timm.is_model(model_name):
            near = difflib.get_close_matches(model_name, timm.list_models(), n=3, cutoff=0.0)
            raise UserError(f"model.net.model_name={model_name} is not in timm {timm.__version__}; nearest: {near}")
        self.net = timm.create_model(
            model_name, pretrained=pretrained, num_classes=num_classes, in_chans=image_shape[0], **(options or {})
        )

    def features(self, image: Tensor) -> Tensor:
        """Return the input of the classification layer, (B, D)."""
        return self.net.forward_head(self.net.forward_features(image), pre_logits=True)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        return self.net(image)
