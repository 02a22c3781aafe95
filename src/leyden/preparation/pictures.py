"""Picture files and .npy files of pixels, read as uint8 arrays of a given shape, and their normalisation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image, ImageOps

from leyden.errors import UserError
from leyden.figures.image_files import open_image

MODES = {1: "L", 3: "RGB"}  # by the number of channels
WORDS = {"L": "grey", "1": "black and white", "P": "palette", "RGBA": "RGBA"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
ORIENTED = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where a file may say which side is up
Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Fit = Literal["stretch", "crop"]
Pixels = TypeVar("Pixels")  # an array of numpy or torch


def read_picture(
    path: Path, shape: tuple[int, int, int], resample: Resample = "bilinear", fit: Fit = "stretch"
) -> tuple[np.ndarray, str | None]:
    """Decode a picture to `shape` (C, H, W), whole (`stretch`) or its largest centred part of this shape (`crop`).

    Also returns a remark, such as "300x200 RGB read as 8x8 grey", where it had another size or mode.

    Raises:
        UserError: when the file is missing, broken or too large, or `shape` has neither 1 nor 3 channels.
    """
    channels, height, width = shape
    if channels not in MODES:
        raise UserError(f"data.image_shape={list(shape)} has {channels} channels; pictures have 1 or 3")
    with open_image(path) as file:
        original = (file.size, file.mode)
        turned = file.format == "TIFF" or ORIENTED & file.info.keys()
        picture = (ImageOps.exif_transpose(file) if turned else file).convert(MODES[channels])
    if picture.size != (width, height):
        resize = ImageOps.fit if fit == "crop" else Image.Image.resize
        picture = resize(picture, (width, height), Image.Resampling[resample.upper()])
    final = (picture.size, picture.mode)
    remark = None if final == original else f"{_words(*original)} read as {_words(*final)}"
    return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1), remark


def open_array(path: Path) -> np.ndarray:
    """Open a .npy file as an array, of which only the parts that are used are read.

    Raises:
        UserError: when the file is missing or broken.
    """
    try:
        return open_memmap(path, mode="r")  # a memory map cannot be larger than the file, whatever the header says
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # numpy raises six kinds of errors for damaged headers
        raise UserError(f"{path} is not an array that can be read ({' '.join(str(error).split())[:200]})") from None


def scaling(mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return what pixels 0 to 255 are multiplied by, and what is then added, for a mean and deviation of pixels 0 to 1.

    Both are (C, 1, 1) float32, of one value or one for each channel.
    """
    centre, deviation = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (mean, std))
    return 1 / (255 * deviation), -centre / deviation


def normalise(pixels: Pixels, scale: Pixels, shift: Pixels) -> Pixels:
    """Scale float pixels (B, C, H, W) in place: in training by torch on its device, elsewhere by numpy."""
    pixels *= scale
    pixels += shift
    return pixels


def _words(size: tuple[int, int], mode: str) -> str:
    return f"{size[0]}x{size[1]} {WORDS.get(mode, mode)}"
