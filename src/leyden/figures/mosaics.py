"""Mosaics: pictures composed of smaller pictures, as uint8 arrays (H, W) or, in colour, (H, W, 3)."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 48  # pixels: smaller images are enlarged
MAX_SIDE = 2000  # pixels: images are not enlarged beyond this size of the whole picture
GAP = 2
LINE = 16  # height of a line of text
WHITE, INK, RED, GREEN = 255, "#1c2833", "#c0392b", "#1e8449"


def mosaic(
    images: np.ndarray,
    columns: int | None = None,
    names: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    inks: Sequence[str] | None = None,
) -> np.ndarray:
    """Arrange images (N, C, H, W), uint8 or floats from 0 to 1, in rows of `columns`; by default in a square.

    Small images are enlarged by an integer factor, until they have 48 pixels or the width of the widest caption, or the
    picture has 2000 pixels. `names` are written to the left of the rows. `captions` of one or more lines are written
    below the images, each in its colour from `inks`.
    """
    cells = to_pixels(images)
    cells = cells.transpose(0, 2, 3, 1) if cells.shape[1] == 3 else cells.mean(1).astype(np.uint8)  # (N, H, W[, 3])
    if inks and cells.ndim == 3:
        cells = cells[..., None].repeat(3, 3)
    columns = min(columns or math.ceil(math.sqrt(len(cells))), len(cells))
    rows = math.ceil(len(cells) / columns)
    caption_lines = [line for caption in captions or () for line in caption.split("\n")]
    caption_width = math.ceil(max(map(_font().getlength, caption_lines), default=0))
    scale = _scale(max(CELL, caption_width), rows, columns, *cells.shape[1:3])
    cells = cells.repeat(scale, 1).repeat(scale, 2)
    count, height, width, *colour = cells.shape
    num_lines = max((caption.count("\n") + 1 for caption in captions or ()), default=0)
    pitch_y, pitch_x = height + num_lines * LINE + GAP, max(width, caption_width) + GAP
    left = (pitch_x - GAP - width) // 2
    canvas = np.full((rows * columns, pitch_y, pitch_x, *colour), WHITE, np.uint8)
    canvas[:count, :height, left : left + width] = cells
    canvas = canvas.reshape(rows, columns, *canvas.shape[1:]).swapaxes(1, 2)  # (rows, pitch_y, columns, pitch_x, …)
    canvas = canvas.reshape(rows * pitch_y, columns * pitch_x, *colour)[:-GAP, :-GAP]
    texts = [
        (
            (k % columns + 0.5) * pitch_x - GAP / 2,
            (k // columns + 1) * pitch_y - GAP - num_lines * LINE / 2,
            caption,
            "mm",
        )
        for k, caption in enumerate(captions or ())
    ]
    canvas = _with_text(canvas, texts, inks)
    if not names:
        return canvas
    names = [name if len(name) <= 24 else name[:23] + "…" for name in names]
    left = math.ceil(max(map(_font().getlength, names))) + 3 * GAP
    texts = [(left - 2 * GAP, k * pitch_y + height / 2, name, "rm") for k, name in enumerate(names)]
    return _with_text(_with_border(canvas, left=left), texts)


def side_by_side(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Place pictures beside each other, below their names: `side_by_side({"real": mosaic(x), "fake": mosaic(y)})`."""
    if any(picture.ndim == 3 for picture in pictures.values()):
        pictures = {name: np.asarray(Image.fromarray(picture).convert("RGB")) for name, picture in pictures.items()}
    max_height = max(map(len, pictures.values()))
    parts = []
    for name, picture in pictures.items():
        padded_picture = _with_border(picture, top=LINE, right=8 * GAP, bottom=max_height - len(picture))
        parts.append(_with_text(padded_picture, [(0, LINE / 2, name, "lm")]))
    return np.concatenate(parts, 1)[:, : -8 * GAP]


def neighbours(images: np.ndarray, nearest: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Draw each image (N, C, H, W) beside its nearest ones (N, K, C, H, W), with their distances (N, K) below them."""
    captions = [text for row in distances for text in ("sample", *(f"{distance:.2f}" for distance in row))]
    rows = np.concatenate([images[:, None], nearest], 1)  # (N, 1 + K, C, H, W)
    return mosaic(rows.reshape(-1, *images.shape[1:]), columns=rows.shape[1], captions=captions)


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Turn floats from 0 to 1 into uint8 pixels; values outside are clipped, NaN is black."""
    if images.dtype == np.uint8:
        return images
    return np.rint(255 * np.nan_to_num(images).clip(0, 1)).astype(np.uint8)


def _scale(cell: int, rows: int, columns: int, height: int, width: int) -> int:
    max_scale = min((MAX_SIDE // rows - GAP) // height, (MAX_SIDE // columns - GAP) // width)
    return max(1, min(math.ceil(cell / min(height, width)), max_scale))


def _with_border(picture: np.ndarray, *, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0) -> np.ndarray:
    border = ((top, bottom), (left, right), (0, 0))[: picture.ndim]
    return np.pad(picture, border, constant_values=WHITE)


def _with_text(
    picture: np.ndarray, texts: Sequence[tuple[float, float, str, str]], inks: Sequence[str] | None = None
) -> np.ndarray:
    """Write texts, each at (x, y) with its anchor ("lm": left-aligned, "mm": centred, "rm": right-aligned)."""
    if not texts:
        return picture
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for (x, y, text, anchor), ink in zip(texts, inks or [INK] * len(texts), strict=True):
        draw.text((x, y), text, fill=ink, font=_font(), anchor=anchor, align="center")
    return np.asarray(image)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return the font of the other figures, which comes with matplotlib."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 11)
