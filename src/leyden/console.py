"""Output for people: lines on the terminal, and the same lines in the log.txt of a run."""

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text
from typing_extensions import override

# Control characters other than tab and newline, those that change the direction of writing, and lone surrogates.
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: object) -> str:
    r"""Return text with its control characters escaped, such as `\x1b`, so that it cannot control a terminal.

    A run directory may come from somebody else: its names, config, reasons and metrics are not trusted.
    """
    text = str(text)
    return text if text.isprintable() else CONTROL_CHARACTERS.sub(lambda match: ascii(match[0])[1:-1], text)


def escaped_text(text: object, style: str = "") -> Text:
    """Return untrusted text for a table or a line: escaped, and without markup."""
    return Text(escaped(text), style)


class Terminal(Console):
    """A console that escapes everything printed on it, and treats no text as markup."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **arguments)

    @override
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object with all its text escaped, also in nested tables."""
        for segment in super().render(renderable, options):
            is_safe = segment.control or segment.text.isprintable()
            yield segment if is_safe else segment._replace(text=escaped(segment.text))


log = logging.getLogger("leyden")
console = Terminal(soft_wrap=True)


class _ConsoleHandler(logging.Handler):
    @override
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:
            with contextlib.suppress(BrokenPipeError, SystemExit):  # `| head` must not end the training
                console.print(self.format(record))


class _LogFile(logging.FileHandler):
    """A log file whose errors, such as a full disk, neither end the run nor hide another error."""

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line: the other files of the run report the full disk."""

    @override
    def close(self) -> None:
        """Close the file; the last lines may not fit on the disk."""
        with contextlib.suppress(OSError):
            super().close()


def debug() -> bool:
    """Return whether the user wants tracebacks: LEYDEN_DEBUG=1."""
    return os.environ.get("LEYDEN_DEBUG", "") not in ("", "0")


def say(text: str) -> None:
    """Show a line, and write it to the log of the current run."""
    log.info(escaped(text))


def note(text: str) -> None:
    """Write text only to the log of the current run, because it is too long for the terminal."""
    log.debug(escaped(text))


def complain(text: str) -> None:
    """Print an error or a warning on standard error."""
    print(f"leyden: {escaped(text)}", file=sys.stderr)


def put(text: object) -> None:
    """Print a line with untrusted text, and flush it for a reader at the other end of a pipe."""
    print(escaped(text), flush=True)


@contextlib.contextmanager
def logging_to(path: Path, *, show: bool = True) -> Iterator[None]:
    """Show the lines of `say` on the terminal, and write them and every warning to a log file, while in this block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _LogFile(path, delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    handlers = [(log, file), *([(log, _ConsoleHandler())] if show else []), (logging.getLogger("py.warnings"), file)]
    old_level, old_showwarning = log.level, warnings.showwarning
    log.setLevel(logging.DEBUG)
    for logger, handler in handlers:
        logger.propagate = False  # otherwise Hydra's handlers would show it again
        logger.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        if old_showwarning is not warnings.showwarning:  # otherwise the caller of leyden captures them, too
            logging.captureWarnings(False)
        log.setLevel(old_level)
        for logger, handler in handlers:
            logger.removeHandler(handler)
            logger.propagate = True
        file.close()
