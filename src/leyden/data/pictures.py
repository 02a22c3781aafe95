"""Files of pictures, and of pixels in .npy, as uint8 arrays of a given shape."""

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from leyden.errors import UserError

MODES = {1: "L", 3: "RGB"}  # by the number of channels
Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Fit = Literal["stretch", "crop"]


def read_picture(
    path: Path, shape: tuple[int, int, int], resample: Resample = "bilinear", fit: Fit = "stretch"
) -> np.ndarray:
    """Decode a picture to `shape` (C, H, W): whole, or (`crop`) its largest centred part with the right proportions.

    Raises:
        UserError: when the file is missing or broken, or pictures have no such number of channels.
    """
    channels, height, width = shape
    if channels not in MODES:
        raise UserError(f"data.image_shape={list(shape)} has {channels} channels; pictures have 1 or 3")
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert(MODES[channels])
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a picture that can be read ({error})") from None
    if picture.size != (width, height):
        resize = ImageOps.fit if fit == "crop" else Image.Image.resize
        picture = resize(picture, (width, height), Image.Resampling[resample.upper()])
    return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)


def read_array(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Read a .npy file of pixels (N, C, H, W), (C, H, W) or, with one channel, (H, W): always (N, C, H, W).

    Raises:
        UserError: when the file is missing or broken, or holds another type or shape.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not an array that can be read ({error})") from None
    if array.dtype != np.uint8:
        raise UserError(f"{path} holds {array.dtype}; save pixels as uint8, 0 to 255")
    if shape in (array.shape, (1, *array.shape)):  # a single image
        return array.reshape(1, *shape)
    if array.shape[1:] != shape:
        raise UserError(f"{path} holds an array {list(array.shape)}; the images here are {list(shape)}")
    return array
