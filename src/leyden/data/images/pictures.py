"""Picture files and .npy files of pixels, read as uint8 arrays of a given shape."""

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image, ImageOps

from leyden.errors import UserError
from leyden.figures.image_files import open_image

MODES = {1: "L", 3: "RGB"}  # by the number of channels
Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Fit = Literal["stretch", "crop"]


def read_picture(
    path: Path, shape: tuple[int, int, int], resample: Resample = "bilinear", fit: Fit = "stretch"
) -> np.ndarray:
    """Decode a picture to `shape` (C, H, W), whole (`stretch`) or its largest centred part of this shape (`crop`).

    Raises:
        UserError: when the file is missing, broken or too large, or `shape` has neither 1 nor 3 channels.
    """
    channels, height, width = shape
    if channels not in MODES:
        raise UserError(f"data.image_shape={list(shape)} has {channels} channels; pictures have 1 or 3")
    with open_image(path) as file:
        picture = ImageOps.exif_transpose(file).convert(MODES[channels])
    if picture.size != (width, height):
        resize = ImageOps.fit if fit == "crop" else Image.Image.resize
        picture = resize(picture, (width, height), Image.Resampling[resample.upper()])
    return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)


def read_array(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Read a .npy file of pixels (N, C, H, W), (C, H, W) or, with one channel, (H, W); return (N, C, H, W).

    Raises:
        UserError: when the file is missing or broken, or holds another type or shape.
    """
    try:
        # a memory map cannot be larger than the file, whatever the header says
        array = np.array(open_memmap(path, mode="r"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # numpy raises six kinds of errors for damaged headers
        raise UserError(f"{path} is not an array that can be read ({' '.join(str(error).split())[:200]})") from None
    if array.dtype != np.uint8:
        raise UserError(f"{path} holds {array.dtype}; save pixels as uint8, 0 to 255")
    if shape in (array.shape, (1, *array.shape)):  # a single image
        return array.reshape(1, *shape)
    if array.shape[1:] != shape:
        raise UserError(f"{path} holds an array {list(array.shape)}; the images here are {list(shape)}")
    return array
