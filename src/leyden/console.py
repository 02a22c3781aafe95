"""What a person sees: lines and a progress bar on the terminal, the same lines in the run's log.txt."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

log = logging.getLogger("leyden")
console = Console(soft_wrap=True, highlight=False)


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), markup=False)


def debug() -> bool:
    """Tell whether tracebacks are wanted: LEYDEN_DEBUG=1."""
    return os.environ.get("LEYDEN_DEBUG", "") not in ("", "0")


def say(text: str) -> None:
    """Show a line, and keep it in the log of the run at hand."""
    log.info(text)


def complain(text: str) -> None:
    """Show what is wrong on standard error."""
    print(f"leyden: {text}", file=sys.stderr)


@contextlib.contextmanager
def logging_to(path: Path, *, quiet: bool = False) -> Iterator[None]:
    """Write what is said, and every warning, to a log file while in this block; only leyden's lines to the terminal."""
    handlers: list[logging.Handler] = [logging.FileHandler(path, delay=True)]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root = logging.getLogger()
    shown = _ConsoleHandler()
    log.setLevel(logging.INFO)
    root.addHandler(handlers[0])
    if not quiet:
        log.addHandler(shown)
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handlers[0])
        handlers[0].close()
        log.removeHandler(shown)
