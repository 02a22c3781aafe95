"""An exception in one line: what was raised, and where in the user's project."""

import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path

from leyden.places import seen

LEYDEN = Path(__file__).parent
PYTHON = Path(sysconfig.get_path("stdlib"))


def describe(error: BaseException) -> str:
    """Say in one line what was raised and where, as `ValueError: too many values at my/net.py:23 in training_step`."""
    if isinstance(error, BaseExceptionGroup):
        count, first = len(error.exceptions), error.exceptions[0]
        told = f"{type(error).__name__}: {error.message} ({count} errors), the first: {describe(first)}"
        return told if own_place(first) else f"{told}{own_place(error)}"
    message = f"{type(error).__name__}: {_first_line(error)}".removesuffix(": ")
    place = own_place(error)
    if not place and (line := _place(error, _is_leydens)):
        place = f" ({line.removeprefix(' at ')})"  # apart from a message of leyden's own, which often is advice
    return f"{getattr(error, 'leyden_context', '')}{message}{place}"


def own_place(error: BaseException) -> str:
    """Return ` at my/net.py:23 in training_step`, the innermost line of the user's project; empty if there is none."""
    return _place(error, lambda path: _is_own(path) and path.is_relative_to(Path.cwd())) or _place(error, _is_own)


def within(error: BaseException, context: str) -> None:
    """Have `describe` begin with what was being done; what was said first, nearer to the error, stands."""
    if not hasattr(error, "leyden_context"):
        error.__dict__["leyden_context"] = f"{context}: "


def _first_line(error: BaseException) -> str:
    try:
        lines = (error.msg if isinstance(error, SyntaxError) else str(error)).strip().splitlines()
    except Exception:  # a message that cannot be made must not hide what was raised
        return ""
    return "".join(lines[:1]) + (" …" if len(lines) > 1 else "")


def _place(error: BaseException, counts: Callable[[Path], bool]) -> str:
    """Name the innermost line that counts, of the error or else of what it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SyntaxError) and cause.filename and counts(Path(cause.filename)):
            return f" at {_shown(Path(cause.filename))}:{cause.lineno}"
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if counts(path := Path(frame.filename)):
                return f" at {_shown(path)}:{frame.lineno} in {frame.name}"
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return ""


def _is_leydens(path: Path) -> bool:
    return path.is_relative_to(LEYDEN) or path.is_relative_to(LEYDEN.parent / "hydra_plugins")


def _is_own(path: Path) -> bool:
    """Whether a file is the user's own: none of leyden's, of an installed package, of Python, or made by a program."""
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    written = path.suffix == ".py" and path.is_absolute()  # not `<string>`, nor the script that starts leyden
    return written and not installed and not path.is_relative_to(PYTHON) and not _is_leydens(path)


def _shown(path: Path) -> Path:
    return path.relative_to(LEYDEN.parent) if _is_leydens(path) else seen(path)
