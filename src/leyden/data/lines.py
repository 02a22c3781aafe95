"""Lines of text files, plain or gzipped."""

import gzip
import zlib
from pathlib import Path

from leyden.errors import UserError


def decode_utf8(content: bytes, name: str | Path) -> str:
    """Return the text; UserError that names the offset of the first byte that is not UTF-8."""
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}; convert it with iconv"
        ) from None


def split_lines(content: bytes, name: str | Path) -> list[str]:
    """Return the lines of a file's content, without their ends; only a line feed ends a line.

    Raises:
        UserError: when it is not UTF-8, or empty.
    """
    text = decode_utf8(content, name)
    if not text.strip():
        raise UserError(f"{name} is empty")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file; what ends in .gz is unpacked.

    Raises:
        UserError: when it cannot be read, is not UTF-8, or empty.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return split_lines(content, path)
