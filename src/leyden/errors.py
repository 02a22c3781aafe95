"""The one exception that speaks to the user, the guess at what was meant, and any other exception in one line."""

import difflib
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from leyden.places import seen

LEYDEN = Path(__file__).parent
PYTHON = Path(sysconfig.get_path("stdlib"))


class UserError(ValueError):
    """A request that cannot be met. Its message is one sentence: what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with code 2.
    """

    exit_code = 2


class RunError(RuntimeError):
    """What was asked for was right and did not succeed. The command line prints the message and exits with its code."""

    exit_code = 1


def plainly(error: OSError) -> str:
    """Word an error of the operating system without its number."""
    if not error.strerror:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror


def nearest(name: str, options: Iterable[str]) -> str:
    """Return `; did you mean …?`, or what there is to choose from."""
    options = sorted(set(options))
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are: {', '.join(options)}" if options else ""


def describe(error: BaseException) -> str:
    """Say in one line what was raised and where, as `ValueError: too many values at my/net.py:23 in training_step`."""
    if isinstance(error, BaseExceptionGroup):
        count, first = len(error.exceptions), error.exceptions[0]
        told = f"{type(error).__name__}: {error.message} ({count} errors), the first: {describe(first)}"
        return told if own_place(first) else f"{told}{own_place(error)}"
    message = f"{type(error).__name__}: {_first_line(error)}".removesuffix(": ")
    place = own_place(error) or _place(error, _is_leydens)
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
