"""Pictures: reads files of any size and colours, or arrays of pixels, and normalises them for a net."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from leyden.errors import UserError
from leyden.preparation.pictures import SUFFIXES, Fit, Resample, normalise, open_array, read_picture, scaling
from leyden.schema.field import Arrays, Field, Item, Sketch

MAX_SKETCHED = 10_000  # pictures from which a sketch is computed


class Image(Field):
    """A picture; `brightness` sketches the mean pixels of the training pictures, 0 to 255."""

    suffixes: ClassVar[tuple[str, ...]] = (*SUFFIXES, ".npy")

    kind: str = "image"
    shape: tuple[int, int, int]  # (C, H, W)
    mean: list[float]  # mean of pixels scaled to 0..1: one value, or one for each channel
    std: list[float]
    resample: Resample = "bilinear"
    fit: Fit = "stretch"
    brightness: Sketch

    def items_of_file(self, path: Path) -> Iterable[Item]:
        """List the picture in a file, or the pictures in a .npy file."""
        if path.suffix.lower() != ".npy":
            return [Item(str(path), path)]
        arrays = self._pictures(open_array(path), str(path))
        return [Item(str(path) if len(arrays) == 1 else f"{path}[{n}]", array) for n, array in enumerate(arrays)]

    def items_of_value(self, value: Any) -> Iterable[Item]:
        """List the pictures in an array (N, C, H, W), (C, H, W) or, with one channel, (H, W)."""
        return [Item(f"row {n}", array) for n, array in enumerate(self._pictures(np.asarray(value), "the array"))]

    def prepare(self, item: Item) -> tuple[np.ndarray, str | None]:
        """Decode and resize a picture to uint8 (C, H, W)."""
        if isinstance(item.value, np.ndarray):
            return item.value, self._brightness_remark(item.value)
        picture, remark = read_picture(item.value, self.shape, self.resample, self.fit)
        return picture, "; ".join(filter(None, (remark, self._brightness_remark(picture)))) or None

    def _brightness_remark(self, picture: np.ndarray) -> str | None:
        """Return a remark if a picture, such as dark ink on white, is brighter or darker than all training pictures."""
        brightness, training = int(picture.sum()) / picture.size, self.brightness  # quicker than mean()
        if training.low - training.std <= brightness <= training.high + training.std:
            return None
        is_swapped = training.low <= 255 - brightness <= training.high
        word = "brighter" if brightness > training.high else "darker"
        hint = ": are light and dark swapped?" if is_swapped else ""
        return f"{word} than every training picture (mean {training.low:.0f} to {training.high:.0f} of 255){hint}"

    def collate(self, rows: Sequence[np.ndarray]) -> Arrays:
        """Return the `image` (B, C, H, W) float32, normalised."""
        return {"image": normalise(np.stack(rows).astype(np.float32), *self.scaling)}

    def describe(self) -> str:
        """Describe the size and the colours."""
        channels, height, width = self.shape
        colours = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
        return f"pictures of {width}x{height} {colours}, mean brightness {self.brightness.mean:.3g} of 255"

    @property
    def scaling(self) -> tuple[np.ndarray, np.ndarray]:
        """The scale and the shift that normalise pixels 0 to 255: (C, 1, 1) or (1, 1, 1) float32 each."""
        return scaling(self.mean, self.std)

    def _pictures(self, array: np.ndarray, source: str) -> np.ndarray:
        """Check an array; return it as (N, C, H, W)."""
        shape = self.shape
        if array.dtype != np.uint8:
            is_scaled = array.dtype.kind == "f" and array.size and np.nanmax(array) <= 1
            raise UserError(
                f"{source} holds {array.dtype}; save pixels as uint8, 0 to 255"
                f"{': multiply by 255 and round' if is_scaled else ''}"
            )
        if shape in (array.shape, (1, *array.shape)):  # a single picture
            return array.reshape(1, *shape)
        if array.shape[1:] != shape:
            is_channels_last = array.shape[1:] == (*shape[1:], shape[0])
            advice = "; channels come first: array.transpose(0, 3, 1, 2)" if is_channels_last else ""
            raise UserError(f"{source} holds an array {list(array.shape)}; the images here are {list(shape)}{advice}")
        if not len(array):
            raise UserError(f"{source} holds no picture: its shape is {list(array.shape)}")
        return array


def sketch(images: np.ndarray) -> Sketch:
    """Compute the sketch of the brightness of pictures (N, C, H, W) uint8."""
    subset = images[:: -(-len(images) // MAX_SKETCHED)]
    return Sketch.of(subset.mean((1, 2, 3)))
