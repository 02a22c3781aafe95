"""The exceptions whose messages are for the user, and suggestions for misspelt names."""

import difflib
import os
import traceback
from collections.abc import Iterable


class ShownInOneLine(BaseException):
    """An exception of which a notebook shows the message alone; with LEYDEN_DEBUG=1 it shows the traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines to show; IPython calls this."""
        if os.environ.get("LEYDEN_DEBUG", "") not in ("", "0"):
            return traceback.format_exception(self)
        return [f"{type(self).__name__}: {self}"]


class UserError(ShownInOneLine, ValueError):
    """A wrong request. Its message is one sentence: what is wrong, where, and how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """

    exit_code = 2


class RunError(ShownInOneLine, RuntimeError):
    """The failure of a valid request. The command line prints the message and exits with the code of the error."""

    exit_code = 1


class CheckpointError(OSError):
    """A checkpoint could not be written. The message is one line that says why."""


def os_error_message(error: OSError) -> str:
    """Return the message of an OSError without its errno."""
    if not error.strerror:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror


def nearest(name: str, options: Iterable[str]) -> str:
    """Return the hint `; did you mean …?` with the option nearest to a name, or `; there are: …` with all options."""
    options = sorted(set(options))
    if matches := difflib.get_close_matches(name, options, n=1, cutoff=0.6):
        return f"; did you mean {matches[0]}?"
    return f"; there are: {', '.join(options)}" if options else ""
