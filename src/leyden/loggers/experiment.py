"""The object that a module gets as `self.logger.experiment` if the config chooses no logger.

Modules call methods of TensorBoard's `SummaryWriter` or W&B's `Run` on it. Values, pictures, figures and texts go to
the local record. Everything else is dropped, and one line for each method reports this.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from leyden.console import say
from leyden.figures.mosaics import mosaic

HINT = "for anything else choose a logger, such as logger=tensorboard or logger=wandb"


class LocalExperiment:
    """The client of the local record. Every value belongs to the trainer's step, whatever step the caller names."""

    def __init__(self, record: Any) -> None:
        self._record = record  # a `leyden.loggers.record.Record`; its module imports this one
        self._reported_calls: set[str] = set()

    def log(self, data: Mapping[str, Any], *_: Any, **__: Any) -> None:
        """Log the numbers and figures of a dict, as `Run.log` of W&B does."""
        numbers = {}
        for name, value in data.items():
            if isinstance(value, int | float | np.number) or (isinstance(value, Tensor) and value.numel() == 1):
                numbers[name] = float(value)
            elif isinstance(value, Figure):
                self.add_figure(name, value)
            else:
                self.drop(f"log({name}: {type(value).__name__})")
        if numbers:
            self._record.log_metrics(numbers, self._record.step)

    def add_scalar(self, tag: str, scalar_value: Any, *_: Any, **__: Any) -> None:
        """Log a value."""
        self.log({tag: scalar_value})

    def add_scalars(self, main_tag: str, tag_scalar_dict: Mapping[str, Any], *_: Any, **__: Any) -> None:
        """Log several values."""
        self.log({f"{main_tag}/{name}": value for name, value in tag_scalar_dict.items()})

    def add_image(
        self, tag: str, img_tensor: Any, global_step: Any = None, walltime: Any = None, dataformats: str = "CHW"
    ) -> None:
        """Add a picture, uint8 or floats from 0 to 1, to the film `samples/<tag>.gif`."""
        self.add_images(tag, np.asarray(_on_cpu(img_tensor))[None], dataformats=f"N{dataformats}")

    def add_images(
        self, tag: str, img_tensor: Any, global_step: Any = None, walltime: Any = None, dataformats: str = "NCHW"
    ) -> None:
        """Add pictures, uint8 or floats from 0 to 1, as one mosaic to the film `samples/<tag>.gif`."""
        images = np.asarray(_on_cpu(img_tensor))
        if "C" not in dataformats:
            images, dataformats = images[..., None], f"{dataformats}C"
        images = images.transpose([dataformats.index(axis) for axis in "NCHW"])
        self._record.log_image(_file_name(tag), mosaic(images), self._record.step)

    def add_figure(self, tag: str, figure: Any, *_: Any, **__: Any) -> None:
        """Draw matplotlib figures to `figures/<tag>.png`, in place of earlier ones."""
        figures = figure if isinstance(figure, list) else [figure]
        for number, one in enumerate(figures):
            name = f"{_file_name(tag)}_{number}" if len(figures) > 1 else _file_name(tag)
            self._record.log_figure(name, one, self._record.step)

    def add_text(self, tag: str, text_string: str, *_: Any, **__: Any) -> None:
        """Write a text to `samples/<tag>.txt`, in place of an earlier one."""
        self._record.log_text(_file_name(tag), text_string, self._record.step)

    def drop(self, what: str) -> None:
        """Report, once for each kind of call, that the local record does not store it."""
        if what not in self._reported_calls:
            self._reported_calls.add(what)
            say(f"self.logger.experiment.{what}: the run's folder holds values, pictures, figures and texts; {HINT}")

    def __getattr__(self, name: str) -> "UnsupportedMember":
        """Return a stand-in for a method or an attribute that this class does not have."""
        if name.startswith("_"):  # Python's own protocols, such as copying
            raise AttributeError(name)
        return UnsupportedMember(self, name)


class UnsupportedMember:
    """A method or an attribute that only other loggers' clients have; a call has no effect but a message."""

    def __init__(self, experiment: LocalExperiment, name: str) -> None:
        self._experiment, self._name = experiment, name

    def __call__(self, *_: Any, **__: Any) -> "UnsupportedMember":
        """Report that the call has no effect."""
        self._experiment.drop(self._name)
        return self

    def __getattr__(self, name: str) -> "UnsupportedMember":
        """Return an attribute of it, such as `update` of W&B's `config`."""
        if name.startswith("_"):
            raise AttributeError(name)
        return UnsupportedMember(self._experiment, f"{self._name}.{name}")


def _on_cpu(array: Any) -> Any:
    return array.detach().cpu() if isinstance(array, Tensor) else array


def _file_name(tag: str) -> str:
    """Return a tag as a path below the run's folder."""
    parts = ("".join(c if c.isalnum() or c in "._-" else "_" for c in part).lstrip(".") for part in tag.split("/"))
    return "/".join(filter(None, parts)) or "picture"
