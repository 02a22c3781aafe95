"""Write a folder of config files in one step."""

import os
import secrets
import shutil
from pathlib import Path

from leyden.errors import UserError


def write(folder: Path, files: dict[str, str]) -> None:
    """Write files into a new folder, which appears when all of them are in it.

    Raises:
        UserError: if the folder exists already, or cannot be written.
    """
    temporary_folder = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        for name, text in files.items():
            path = temporary_folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        if os.path.lexists(folder):
            raise UserError(f"{folder} exists already: adopt overwrites nothing")
        temporary_folder.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary_folder, ignore_errors=True)
