"""The one exception that speaks to the user, and the guess at what was meant."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A request that cannot be met. Its message is one sentence: what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with code 2.
    """

    exit_code = 2


class RunError(RuntimeError):
    """What was asked for was right and did not succeed. The command line prints the message and exits with its code."""

    exit_code = 1


class CheckpointError(OSError):
    """A checkpoint could not be written. The message is one line that says why."""


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
