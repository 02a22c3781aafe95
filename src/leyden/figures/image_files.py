"""Opens picture files of unknown origin; Pillow reads files nowhere else in leyden."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from leyden.errors import UserError

# Only common formats, which Pillow decodes itself or with a C library. It knows some 40 formats, and detects them by a
# file's content, not its name. For EPS it would start Ghostscript, which runs the code in the file, and some decoders
# are for the files of a single game.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 100_000_000  # some kilobytes can decode to more; 10,000 x 10,000 pixels take 0.4 GB while they are read

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # Pillow warns above 89 million pixels


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open a picture and decode its first frame, which takes at most 8 bytes per pixel (0.8 GB).

    Raises:
        UserError: if the file is missing, damaged, in a format other than FORMATS, or larger than MAX_PIXELS, or
            if the block fails because of the file's content; the message names the file.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise UserError(_too_large(path, f"{width} x {height} pixels, {width * height:,}"))
            picture.load()
            yield picture
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise UserError(_too_large(path, f"{int(count[0]):,} pixels" if count else "too many pixels")) from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{path} is not a picture that can be read: it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow raises a dozen kinds of exceptions for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is not a picture that can be read ({reason[:200]})") from None


def _too_large(path: Path, size: str) -> str:
    return f"{path} is too large: {size}; leyden reads up to {MAX_PIXELS:,} pixels: make it smaller"
