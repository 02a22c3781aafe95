"""What a person sees: lines and a progress bar on the terminal, the same lines in the run's log.txt."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Control characters other than tab and newline, those that turn the direction of writing, and halves of pairs.
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> str:
    r"""Return text in which nothing commands a terminal: an escape character, for one, is written as `\x1b`.

    A run directory may come from somebody else; its names, config, reasons and metrics are foreign text.
    """
    text = str(text)
    return text if text.isprintable() else COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)


def foreign(text: object, style: str = "") -> Text:
    """Return foreign text for a table or a line, as wide as it is shown: nothing in it is read as markup."""
    return Text(plain(text), style)


class Terminal(Console):
    """A console for foreign text, whoever prints it: nothing is read as markup, and all is shown as by `plain`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **arguments)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render what is printed here, however deep in a table it stands."""
        for segment in super().render(renderable, options):
            is_plain = segment.control or segment.text.isprintable()
            yield segment if is_plain else segment._replace(text=plain(segment.text))


log = logging.getLogger("leyden")
console = Terminal(soft_wrap=True)


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:
            with contextlib.suppress(BrokenPipeError, SystemExit):  # `| head` must not end the training
                console.print(self.format(record))


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
    log.info(plain(text))


def note(text: str) -> None:
    """Keep something in the log of the run at hand that is too long to show."""
    log.debug(plain(text))


def complain(text: str) -> None:
    """Show what is wrong on standard error."""
    print(f"leyden: {plain(text)}", file=sys.stderr)


def put(text: object) -> None:
    """Print a line that may hold foreign text, so that a reader at the other end of a pipe has it at once."""
    print(plain(text), flush=True)


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
