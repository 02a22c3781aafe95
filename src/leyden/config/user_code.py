"""Tells the user's code from library code, and describes an exception with the innermost line of the user's code."""

import re
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path

from leyden.config.locations import project_root, relative_to_cwd

INSTALLED_FOLDER = re.compile(r"/(site|dist)-packages/")
LEYDEN = tuple(f"{Path(__file__).parents[2] / name}/" for name in ("leyden", "hydra_plugins"))
PYTHON = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib"))


def describe(error: BaseException) -> str:
    """Describe an exception in one line: `ValueError: too many values at my/net.py:23 in training_step`."""
    if isinstance(error, BaseExceptionGroup):
        count, first = len(error.exceptions), error.exceptions[0]
        text = f"{type(error).__name__}: {error.message} ({count} errors), the first: {describe(first)}"
        return text if place_in_user_code(first) else f"{text}{place_in_user_code(error)}"
    message = f"{type(error).__name__}: {_first_line(error)}".removesuffix(": ")
    location = place_in_user_code(error)
    if not location and (line := _location(error, _is_leyden_code)):
        location = f" ({line.removeprefix(' at ')})"  # in brackets, because leyden's messages often end in advice
    return f"{getattr(error, 'leyden_context', '')}{message}{location}"


def place_in_user_code(error: BaseException) -> str:
    """Return ` at my/net.py:23 in training_step`, the innermost line of the user's project; empty if there is none."""
    root = f"{project_root()}/"
    return _location(error, lambda file: is_user_code(file) and file.startswith(root)) or _location(error, is_user_code)


def add_context(error: BaseException, context: str) -> None:
    """Prefix the description of an error. Later calls have no effect, because the first one is nearest to the error."""
    if not hasattr(error, "leyden_context"):
        error.__dict__["leyden_context"] = f"{context}: "


def _first_line(error: BaseException) -> str:
    try:
        lines = (error.msg if isinstance(error, SyntaxError) else str(error)).strip().splitlines()
    except Exception:  # a message that cannot be formatted must not hide the exception
        return ""
    return "".join(lines[:1]) + (" …" if len(lines) > 1 else "")


def _location(error: BaseException, is_relevant: Callable[[str], bool]) -> str:
    """Return the innermost line in a relevant file, from the traceback of the error or else of its cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SyntaxError) and cause.filename and is_relevant(cause.filename):
            return f" at {_display_path(cause.filename)}:{cause.lineno}"
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if is_relevant(frame.filename):
                return f" at {_display_path(frame.filename)}:{frame.lineno} in {frame.name}"
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return ""


def is_user_code(file: str) -> bool:
    """Return whether a file is the user's code: not leyden's, an installed package's or Python's, nor generated."""
    is_source = file.endswith(".py") and file.startswith("/")  # not `<string>`, and not the script that starts leyden
    return is_source and not INSTALLED_FOLDER.search(file) and not file.startswith(PYTHON) and not _is_leyden_code(file)


def _is_leyden_code(file: str) -> bool:
    return file.startswith(LEYDEN)


def _display_path(file: str) -> Path:
    return Path(file).relative_to(Path(__file__).parents[2]) if _is_leyden_code(file) else relative_to_cwd(Path(file))
