"""Lines of text files, plain or gzipped."""

import gzip
import io
import zlib
from pathlib import Path

from leyden.errors import UserError

MOST_PACKED = 100  # bytes unpacked from each byte of a .gz file; text has a ratio of 3 or 4


def decode_utf8(content: bytes, name: str | Path) -> str:
    """Return the text; a UserError names the offset of the first byte that is not UTF-8."""
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}; convert it with iconv"
        ) from None


def split_lines(content: bytes, name: str | Path) -> list[str]:
    """Return the lines of a file's content, without their ends; only a line feed ends a line.

    Raises:
        UserError: when the content is not UTF-8, or empty.
    """
    text = decode_utf8(content, name)
    if not text.strip():
        raise UserError(f"{name} is empty")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def gunzip(content: bytes, most: int) -> bytes:
    """Unpack gzipped content to at most `most` bytes.

    Raises:
        OSError, EOFError, zlib.error: when there are more bytes, or the content is no whole gzip file.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        unpacked = file.read(most + 1)
    if len(unpacked) > most:
        raise OSError(f"it unpacks to more than {most:,} bytes")
    return unpacked


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file, which is unpacked if its name ends in .gz.

    Raises:
        UserError: when the file cannot be read, is not UTF-8, or empty.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gunzip(content, max(1 << 20, MOST_PACKED * len(content)))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return split_lines(content, path)
