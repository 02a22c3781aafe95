"""Frozen networks whose features are used to compare generated with real pictures."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, FilePath
from torch import Tensor, nn

from leyden import checkpoints
from leyden.checkpoints.choose import choose
from leyden.config.instantiate import instantiate
from leyden.config.locations import CONF
from leyden.console import say
from leyden.contracts import HasFeatures
from leyden.data.download import Remote, data_root, download
from leyden.errors import UserError
from leyden.evaluation.references import cached_reference
from leyden.files.formats import REFERENCE
from leyden.metrics.generation import Reference, summarize
from leyden.nets.inception import InceptionV3
from leyden.run.find import find_run

INCEPTION = Remote(
    "pt_inception-2015-12-05-6726825d.pth",
    "sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    (
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    ),
)


class Features:
    """A frozen network that maps images (B, C, H, W) in [0, 1] to features (B, F) and, if it classifies, probabilities.

    The names of metrics on these features end in `suffix`: `fid_fmnist_cnn`. `record` goes into a run's manifest; its
    `sha256` is the digest of weights and settings. `image_shape` is the shape that the network takes, None for any;
    `classes` are the names of its classes, None if it has none.
    """

    name = ""
    num_features: int
    image_shape: tuple[int, int, int] | None = None
    classes: list[str] | None = None

    def __init__(self, net: nn.Module, source: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
        self.net = net.eval().requires_grad_(False)
        self.settings = settings or {}
        self.sha256 = digest(self.net, self.settings)
        self.record = {"name": self.name, **source, "sha256": self.sha256}
        self.device = torch.device("cpu")

    @property
    def suffix(self) -> str:
        """The ending of the metrics' names; empty for Inception."""
        return f"_{self.name}" if self.name else ""

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Refuse images of a shape that the network does not take."""
        if self.image_shape is not None and tuple(image_shape) != self.image_shape:
            raise UserError(
                f"feature: {self.name} was trained on images of {self.image_shape}, but data.image_shape is "
                f"{tuple(image_shape)}: name a classifier of these data, feature=classifier feature.run=…"
            )

    def to(self, device: torch.device | str) -> Self:
        """Move the network to the device on which its images will be."""
        self.device = torch.device(device)
        self.net.to(self.device)
        return self

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features (B, F) of images (B, C, H, W) in [0, 1], and the classes' probabilities (B, K) or None.

        They are computed in float32, even under autocast.
        """
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self._measure(image.to(self.device, torch.float32))

    def reference(self, batches: Iterable[Tensor], data_sha256: str, num_kept: int) -> Reference:
        """Return the reference of real pictures, which come in batches (B, C, H, W) in [0, 1].

        It is computed once for each `data_sha256`, and cached in the data folder; the features of `num_kept` pictures
        are a part of it.
        """
        key = hashlib.sha256(json.dumps([REFERENCE.number, self.sha256, data_sha256, num_kept]).encode()).hexdigest()

        def compute() -> Reference:
            say(f"measuring the real pictures by {self.name or 'Inception'}, once")
            return summarize((self(batch)[0] for batch in batches), num_kept)

        return cached_reference(key, compute)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it is frozen, so a copied model can share it

    def _measure(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


class ClassifierFeatures(Features):
    """The input of the last layer of a leyden image classifier, and its probabilities.

    `run` is a run (its path, `last`, or part of its name), whose `checkpoint` is best, last or step-N (by default the
    best, or else the last), or a checkpoint file, `*.ckpt`; leyden's own are found from any directory as
    `conf/feature/….ckpt`. `name` is by default the run's. Images are normalised and laid out as in its training.
    """

    def __init__(
        self, run: str, checkpoint: str | None = None, name: Annotated[str, Field(pattern=r"^\w+$")] | None = None
    ) -> None:
        try:
            path, source = _find_checkpoint(run, checkpoint)
            checkpoint_data = checkpoints.load(path)
            config = _classifier_config(checkpoint_data)
            net = _load_net(config["model"]["net"], checkpoint_data["state_dict"])
        except UserError as error:
            raise UserError(f"feature.run={run}: {error}") from error
        data = config["data"]
        self.name = name or re.sub(r"\W", "_", config["name"])
        self.image_shape = tuple(data["image_shape"])
        self.classes = _class_names(config, checkpoint_data)
        self._mean, self._std = (torch.tensor(data[key]).float().reshape(-1, 1, 1) for key in ("mean", "std"))
        self._layout = torch.channels_last if config["model"].get("channels_last") else torch.contiguous_format
        self._features_and_logits = with_features(net.to(memory_format=self._layout))
        super().__init__(net, source, {"net": config["model"]["net"], "mean": data["mean"], "std": data["std"]})
        self.num_features = self(torch.zeros(1, *self.image_shape))[0].shape[1]

    def to(self, device: torch.device | str) -> Self:
        """Move the network to the device on which its images will be."""
        super().to(device)
        self._mean, self._std = self._mean.to(self.device), self._std.to(self.device)
        return self

    def _measure(self, image: Tensor) -> tuple[Tensor, Tensor]:
        image = ((image - self._mean) / self._std).contiguous(memory_format=self._layout)
        features, logits = self._features_and_logits(image)
        return features.flatten(1), logits.softmax(1)


class InceptionFeatures(Features):
    """The 2,048 features that define FID, computed on pictures rounded to 8 bits; the metrics' names have no suffix.

    `weights` is the file pt_inception-2015-12-05-6726825d.pth; by default it is downloaded to the data folder. Grey
    pictures are repeated to three channels, and all are resized to 299x299 with TensorFlow 1's bilinear filter. The
    features equal those of torch-fidelity bit for bit.
    """

    num_features = 2048

    def __init__(self, weights: FilePath | None = None) -> None:
        path = Path(weights) if weights else data_root() / "inception" / INCEPTION.name
        if weights is None:
            try:
                download(INCEPTION, path)
            except UserError as error:
                raise UserError(f"feature: {error}, or name it as feature.weights") from error
        try:
            INCEPTION.read(path)
        except UserError as error:
            raise UserError(f"feature: {error}") from error
        with torch.device("meta"):  # does not initialise the weights
            net = InceptionV3()
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), assign=True)
        super().__init__(net, {"weights": str(path)})

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Refuse images that are neither grey nor coloured."""
        if image_shape[0] not in (1, 3):
            raise UserError(
                f"feature=inception sees grey or RGB pictures, but data.image_shape is {tuple(image_shape)}"
            )

    def _measure(self, image: Tensor) -> tuple[Tensor, None]:
        pixels = (255 * image).round().clamp(0, 255)
        return self.net(pixels.expand(-1, 3, -1, -1)), None


def digest(net: nn.Module, settings: dict[str, Any]) -> str:
    """Return the sha256 of a network's settings, and of each weight's name, type, shape and bytes."""
    sha256 = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in net.state_dict().items():
        sha256.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha256.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha256.hexdigest()


def with_features(net: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function from images to a net's features and logits, which runs the trunk only once if possible.

    The net's method `features` is replaced by one that records its output.
    """
    trunk, outputs = net.features, []

    def features(image: Tensor) -> Tensor:
        outputs.append(trunk(image))
        return outputs[-1]

    def features_and_logits(image: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(image)
        return outputs.pop() if outputs else trunk(image), logits  # some nets do not call `features` in `forward`

    net.features = features
    return features_and_logits


def _find_checkpoint(name: str, checkpoint: str | None) -> tuple[Path, dict[str, Any]]:
    """Return the path of a run's checkpoint, or of a checkpoint file, and its source for `record`."""
    if not name.endswith(".ckpt"):
        try:
            run = find_run(name)
            path = choose(run, checkpoint).resolve()
        except UserError as error:
            raise UserError(
                str(error).removeprefix(f"{name}: ").replace("--checkpoint", "feature.checkpoint")
            ) from error
        return path, {"run": run.name, "checkpoint": path.name}
    if checkpoint is not None:
        raise UserError(f"it is a single checkpoint: leave feature.checkpoint={checkpoint} out")
    path = next((candidate for candidate in (Path(name), CONF.parent / name) if candidate.exists()), None)
    if path is None:
        raise UserError("there is no such file")
    return path, {"run": name}


def _classifier_config(checkpoint_data: dict[str, Any]) -> dict[str, Any]:
    """Return the config in a checkpoint.

    Raises:
        UserError: if it is not the config of an image classifier.
    """
    config = checkpoint_data["leyden"]["config"] if "leyden" in checkpoint_data else {}
    data, model = config.get("data") or {}, config.get("model") or {}
    if "net" not in model or not {"num_classes", "image_shape", "mean", "std"} <= data.keys():
        raise UserError(f"it is not an image classifier, but {model.get('_target_', 'of another program')}")
    return config


def _load_net(node: dict[str, Any], state_dict: dict[str, Tensor]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # building this net must not change the random weights of later nets
        net = instantiate(node, "model.net")
    if not isinstance(net, HasFeatures):
        raise UserError(f"its net, {node['_target_']}, has no method `features`")
    try:
        net.load_state_dict({k.removeprefix("net."): v for k, v in state_dict.items() if k.startswith("net.")})
    except RuntimeError as error:
        raise UserError("the checkpoint does not fit the net of its own config") from error
    return net


def _class_names(config: dict, checkpoint_data: dict) -> list[str] | None:
    """Return the names of a run's classes, if they can be found without reading the data files."""
    if config["model"].get("classes"):
        return config["model"]["classes"]
    data_state = checkpoint_data.get(config["data"]["_target_"].rpartition(".")[2])
    try:
        data = instantiate(config["data"], "data")
        if data_state:
            data.load_state_dict(data_state)
        return list(data.classes) or None
    except (UserError, AttributeError):
        return None
