"""What a person sees: lines and a progress bar on the terminal, the same lines in the run's log.txt."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

log = logging.getLogger("leyden")
console = Console(soft_wrap=True, highlight=False)


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:
            with contextlib.suppress(BrokenPipeError, SystemExit):  # `| head` must not end the training
                console.print(self.format(record), markup=False)


class _LogFile(logging.FileHandler):
    """A log whose own trouble, a full disk, neither ends the run nor hides what does."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Leave the line out; what else the run writes meets the full disk as well, and says so."""

    def close(self) -> None:
        """Close the file, with what was left out if there is room for it now."""
        with contextlib.suppress(OSError):
            super().close()


def debug() -> bool:
    """Tell whether tracebacks are wanted: LEYDEN_DEBUG=1."""
    return os.environ.get("LEYDEN_DEBUG", "") not in ("", "0")


def say(text: str) -> None:
    """Show a line, and keep it in the log of the run at hand."""
    log.info(text)


def note(text: str) -> None:
    """Keep something in the log of the run at hand that is too long to show."""
    log.debug(text)


def complain(text: str) -> None:
    """Show what is wrong on standard error."""
    print(f"leyden: {text}", file=sys.stderr)


@contextlib.contextmanager
def logging_to(path: Path, *, show: bool = True) -> Iterator[None]:
    """While in this block, show what is said on the terminal, and write it and every warning to a log file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _LogFile(path, delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    shown = _ConsoleHandler()
    listening = [(log, file), *([(log, shown)] if show else []), (logging.getLogger("py.warnings"), file)]
    log.setLevel(logging.DEBUG)
    for logger, handler in listening:
        logger.propagate = False  # Hydra's handlers would show it again
        logger.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, handler in listening:
            logger.removeHandler(handler)
            logger.propagate = True
        file.close()
