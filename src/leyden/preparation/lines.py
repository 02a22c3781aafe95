"""Lines of text files, plain or gzipped."""

import gzip
import io
import zlib
from pathlib import Path

from leyden.errors import UserError

MAX_RATIO = 100  # unpacked bytes for each byte of a .gz file; text has 3 or 4


def decode_utf8(content: bytes, name: str | Path) -> str:
    """Decode UTF-8, and drop a byte-order mark.

    Raises:
        UserError: if a byte is not UTF-8; the message names the offset of the first one.
    """
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}; convert it with iconv"
        ) from None


def split_lines(content: bytes, name: str | Path) -> list[str]:
    """Return the lines of a file's content, without line ends; only a line feed ends a line.

    Raises:
        UserError: if the content is not UTF-8, or empty.
    """
    text = decode_utf8(content, name)
    if not text.strip():
        raise UserError(f"{name} is empty")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def gunzip(content: bytes, max_bytes: int) -> bytes:
    """Unpack gzipped content to at most `max_bytes` bytes.

    Raises:
        OSError, EOFError, zlib.error: when there are more bytes, or the content is not a complete gzip file.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        unpacked_content = file.read(max_bytes + 1)
    if len(unpacked_content) > max_bytes:
        raise OSError(f"it unpacks to more than {max_bytes:,} bytes")
    return unpacked_content


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file, which is unpacked if its name ends in .gz.

    Raises:
        UserError: if the file cannot be read, is not UTF-8, or empty.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gunzip(content, max(1 << 20, MAX_RATIO * len(content)))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return split_lines(content, path)
