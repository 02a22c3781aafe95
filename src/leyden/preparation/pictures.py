"""Picture files and .npy files of pixels, read as uint8 arrays of a given shape, and their normalisation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image, ImageOps

from leyden.errors import UserError
from leyden.figures.image_files import open_image

MODES = {1: "L", 3: "RGB"}  # Pillow's modes by the number of channels
MODE_NAMES = {"L": "grey", "1": "black and white", "P": "palette", "RGBA": "RGBA"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
# keys of metadata that may contain the orientation
ORIENTATION_KEYS = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Fit = Literal["stretch", "crop"]
Pixels = TypeVar("Pixels")  # an array of numpy or torch


def read_picture(
    path: Path, shape: tuple[int, int, int], resample: Resample = "bilinear", fit: Fit = "stretch"
) -> tuple[np.ndarray, str | None]:
    """Decode a picture to `shape` (C, H, W): stretch the whole picture, or crop its largest centred part that fits.

    Also returns a remark, such as "300x200 RGB read as 8x8 grey", if it had another size or mode.

    Raises:
        UserError: if the file is missing, broken or too large, or `shape` has neither 1 nor 3 channels.
    """
    channels, height, width = shape
    if channels not in MODES:
        raise UserError(f"data.image_shape={list(shape)} has {channels} channels; pictures have 1 or 3")
    with open_image(path) as file:
        original_format = (file.size, file.mode)
        may_be_rotated = file.format == "TIFF" or ORIENTATION_KEYS & file.info.keys()
        picture = ImageOps.exif_transpose(file) if may_be_rotated else file
        if picture.mode != MODES[channels]:
            picture = picture.convert(MODES[channels])
    if picture.size != (width, height):
        resize = ImageOps.fit if fit == "crop" else Image.Image.resize
        picture = resize(picture, (width, height), Image.Resampling[resample.upper()])
    new_format = (picture.size, picture.mode)
    is_changed = new_format != original_format
    remark = f"{_describe(*original_format)} read as {_describe(*new_format)}" if is_changed else None
    return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1), remark


def open_array(path: Path) -> np.ndarray:
    """Open a .npy file as a memory-mapped array.

    Raises:
        UserError: if the file is missing or broken.
    """
    try:
        return open_memmap(path, mode="r")  # a memory map cannot be larger than the file, whatever the header says
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # numpy raises six kinds of errors for damaged headers
        raise UserError(f"{path} is not an array that can be read ({' '.join(str(error).split())[:200]})") from None


def scaling(mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale and the shift that normalise pixels 0 to 255 by the mean and deviation of pixels 0 to 1.

    Both are float32: (C, 1, 1) for one mean and deviation per channel, (1, 1, 1) for a single one.
    """
    centre, deviation = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (mean, std))
    return 1 / (255 * deviation), -centre / deviation


def normalise(pixels: Pixels, scale: Pixels, shift: Pixels) -> Pixels:
    """Normalise float pixels (B, C, H, W), a tensor or a numpy array, in place."""
    pixels *= scale
    pixels += shift
    return pixels


def _describe(size: tuple[int, int], mode: str) -> str:
    return f"{size[0]}x{size[1]} {MODE_NAMES.get(mode, mode)}"
