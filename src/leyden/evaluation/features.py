"""The networks that generated pictures are measured by, frozen, and what they say of real ones, computed once."""

import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from filelock import FileLock
from pydantic import Field, FilePath
from torch import Tensor, nn

from leyden import checkpoints
from leyden.config.instantiate import instantiate
from leyden.config.locations import CONF
from leyden.console import say
from leyden.data.download import Remote, data_root, download
from leyden.errors import UserError
from leyden.evaluation.load import choose_checkpoint
from leyden.metrics.generation import Reference, summarize
from leyden.nets.inception import InceptionV3
from leyden.run.find import find_run

FORMAT = 2  # of cached references: goes up when the same weights come to give others, or more is kept of them
INCEPTION = Remote(
    "pt_inception-2015-12-05-6726825d.pth",
    "sha256:6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    (
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    ),
)


class Features:
    """A frozen network: images (B, C, H, W) in [0, 1] to features (B, F), and what it takes them for.

    `suffix` ends the names of what is measured by it: `fid_fmnist_cnn`. `record` is what a run's manifest keeps of it,
    with `sha256`, of its weights and settings. `image_shape` is what it takes, None: any; `classes` names its
    classes, where it has some.
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
        """What follows a metric's name; nothing for Inception's, which made the names."""
        return f"_{self.name}" if self.name else ""

    def check(self, image_shape: tuple[int, int, int]) -> None:
        """Refuse images of a shape that the network does not take."""
        if self.image_shape is not None and tuple(image_shape) != self.image_shape:
            raise UserError(
                f"feature: {self.name} was trained on images of {self.image_shape}, but data.image_shape is "
                f"{tuple(image_shape)}: name a classifier of these data, feature=classifier feature.run=…"
            )

    def to(self, device: torch.device | str) -> Self:
        """Move the network to a device, where images are expected."""
        self.device = torch.device(device)
        self.net.to(self.device)
        return self

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the features (B, F) of images (B, C, H, W) in [0, 1], and the classes' probabilities (B, K) or None.

        In float32, whatever precision is at work around it.
        """
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self._measure(image.to(self.device, torch.float32))

    def reference(self, batches: Iterable[Tensor], data_sha256: str, num_kept: int) -> Reference:
        """Return the reference of real pictures, batches (B, C, H, W) in [0, 1]; `data_sha256` says which they are.

        It is computed once, and kept in the folder of all data. Of `num_kept` pictures the features are kept.
        """
        key = hashlib.sha256(json.dumps([FORMAT, self.sha256, data_sha256, num_kept]).encode()).hexdigest()
        path = data_root() / "features" / f"{key}.pt"
        found = _read(path)
        if found is not None:
            return found
        with _locked(path):
            found = _read(path)  # by who had the lock before
            if found is None:
                say(f"measuring the real pictures by {self.name or 'Inception'}, once")
                found = summarize((self(batch)[0] for batch in batches), num_kept)
                _write(path, found)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # frozen: a copied model may share it

    def _measure(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


class ClassifierFeatures(Features):
    """What the last layer of a leyden image classifier sees, and its probabilities.

    `run` is a run (its path, `last`, or part of its name), of which `checkpoint` is taken (best, last or step-N; by
    default the best, or else the last), or a checkpoint file, `*.ckpt`; one that leyden brings along is found from
    everywhere as `conf/feature/….ckpt`. `name` is by default the run's. Images are normalised and laid out as in its
    training.
    """

    def __init__(
        self, run: str, checkpoint: str | None = None, name: Annotated[str, Field(pattern=r"^\w+$")] | None = None
    ) -> None:
        try:
            path, source = _find(run, checkpoint)
            saved = checkpoints.load(path)
            config = _classifier_config(saved)
            net = _load_net(config["model"]["net"], saved["state_dict"])
        except UserError as error:
            raise UserError(f"feature.run={run}: {error}") from error
        data = config["data"]
        self.name = name or re.sub(r"\W", "_", config["name"])
        self.image_shape = tuple(data["image_shape"])
        self.classes = _class_names(config, saved)
        self._mean, self._std = (torch.tensor(data[key]).float().reshape(-1, 1, 1) for key in ("mean", "std"))
        self._layout = torch.channels_last if config["model"].get("channels_last") else torch.contiguous_format
        self._features_and_logits = tapped(net.to(memory_format=self._layout))
        super().__init__(net, source, {"net": config["model"]["net"], "mean": data["mean"], "std": data["std"]})
        self.num_features = self(torch.zeros(1, *self.image_shape))[0].shape[1]

    def to(self, device: torch.device | str) -> Self:
        """Move the network to a device, where images are expected."""
        super().to(device)
        self._mean, self._std = self._mean.to(self.device), self._std.to(self.device)
        return self

    def _measure(self, image: Tensor) -> tuple[Tensor, Tensor]:
        image = ((image - self._mean) / self._std).contiguous(memory_format=self._layout)
        features, logits = self._features_and_logits(image)
        return features.flatten(1), logits.softmax(1)


class InceptionFeatures(Features):
    """The 2,048 features that FID is defined by, of pictures rounded to 8 bits; metrics keep their plain names.

    `weights` is the file pt_inception-2015-12-05-6726825d.pth; without it, the one in the folder of all data, which is
    downloaded. Grey pictures are repeated to three channels, and all are resized to 299x299 with TensorFlow 1's
    bilinear filter, as torch-fidelity does: bit for bit its features.
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
        with torch.device("meta"):  # draws no weights
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
    """Return the sha256 of a network: its settings, then each weight's name, type, shape and bytes in their order."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in net.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def tapped(net: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function of the image that gives a net's features and logits, its trunk being run once if it can."""
    trunk, seen = net.features, []

    def features(image: Tensor) -> Tensor:
        seen.append(trunk(image))
        return seen[-1]

    def both(image: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(image)
        found = seen.pop() if seen else trunk(image)  # some nets classify without calling `features`
        return found, logits

    net.features = features
    return both


def _find(run: str, which: str | None) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint of a run, or a checkpoint file, and what the record says of it."""
    if not run.endswith(".ckpt"):
        try:
            found = find_run(run)
            path = choose_checkpoint(found, which).resolve()
        except UserError as error:
            raise UserError(
                str(error).removeprefix(f"{run}: ").replace("--checkpoint", "feature.checkpoint")
            ) from error
        return path, {"run": found.name, "checkpoint": path.name}
    if which is not None:
        raise UserError(f"it is one checkpoint: leave feature.checkpoint={which} out")
    path = next((place for place in (Path(run), CONF.parent / run) if place.exists()), None)
    if path is None:
        raise UserError("there is no such file")
    return path, {"run": run}


def _classifier_config(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the config in a checkpoint, if it is that of an image classifier."""
    config = saved["leyden"]["config"] if "leyden" in saved else {}
    data, model = config.get("data") or {}, config.get("model") or {}
    if "net" not in model or not {"num_classes", "image_shape", "mean", "std"} <= data.keys():
        raise UserError(f"it is no image classifier, but {model.get('_target_', 'of another program')}")
    return config


def _load_net(node: dict[str, Any], state_dict: dict[str, Tensor]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # nets that are built beside this one draw the same weights as without it
        net = instantiate(node, "model.net")
    if not hasattr(net, "features"):
        raise UserError(f"its net, {node['_target_']}, has no method `features`")
    try:
        net.load_state_dict({k.removeprefix("net."): v for k, v in state_dict.items() if k.startswith("net.")})
    except RuntimeError as error:
        raise UserError("the checkpoint does not fit the net of its own config") from error
    return net


def _class_names(config: dict, saved: dict) -> list[str] | None:
    """Return the names of a run's classes without reading its files, if they can be known so."""
    if config["model"].get("classes"):
        return config["model"]["classes"]
    target = config["data"]["_target_"]
    learned = saved.get(target.rpartition(".")[2])
    try:
        data = instantiate(config["data"], "data")
        if learned:
            data.load_state_dict(learned)
        return list(data.classes) or None
    except (UserError, AttributeError):
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time make a file; where no file can be, let all."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(f"{path}.lock"))
        yield


def _read(path: Path) -> Reference | None:
    """Read a kept reference; None if it is not there, or not whole."""
    try:
        if checkpoints.problem(path) is None:
            return Reference(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception:  # somebody removed it, or it is of other software
        return None
    return None


def _write(path: Path, found: Reference) -> None:
    """Keep a reference, whole or not at all; whoever else writes it writes the same."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(found._asdict(), temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        say(f"what the real pictures measure is not kept, and will be measured again: {path.parent}: {error}")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
