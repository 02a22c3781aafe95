"""Turn the exception that ends a command into one line on standard error and an exit code."""

import os
import sys
from collections.abc import Callable

from leyden.config.user_code import describe, place_in_user_code
from leyden.console import complain, debug
from leyden.distributed.signals import Interrupted
from leyden.errors import RunError, UserError, os_error_message


def exit_code(function: Callable[[], int | None]) -> int:
    """Call a function; if it raises, print the exception as one line and return the matching exit code."""
    try:
        return function() or 0
    except UserError as error:
        if debug():
            raise
        complain(str(error).replace("\n", "\nleyden: "))
        return error.exit_code
    except Interrupted as interruption:
        return interruption.exit_code
    except RunError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:
        if debug() or not place_in_user_code(error):  # argparse has printed its message already
            raise
        complain(_failure(error))
        return error.code if isinstance(error.code, int) and error.code else 1
    except Exception as error:
        if debug():
            raise
        is_system_error = isinstance(error, OSError) and not place_in_user_code(error)  # a full disk, a missing file
        complain(os_error_message(error) if is_system_error else _failure(error))
        return 1


def _failure(error: BaseException) -> str:
    """Describe an exception, where it was raised, and where its traceback can be read."""
    log = getattr(error, "leyden_log", None)
    return f"{describe(error)} ({f'the traceback is in {log}' if log else 'LEYDEN_DEBUG=1 shows the traceback'})"
