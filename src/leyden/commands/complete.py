"""`leyden -sc install=SHELL` and `query=SHELL`: completion for bash, zsh and fish, by Hydra's own."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterable

from leyden.cli import COMMANDS
from leyden.config.compose import search_path_override
from leyden.config.hydra_check import VERSION_BASE, find_plugins
from leyden.config.locations import CONF
from leyden.console import debug
from leyden.errors import UserError

COMPOSING = ("train", "check", "wandb-sweep")  # what takes choices and keys
ON_RUNS = ("evaluate", "export", "predict", "rerun", "resume", "sample", "show")
ON_SEVERAL = ("cancel", "compare", "submit", "wait")
NUM_RECENT = 30
SAFE = re.compile(r"[\w.,:=+@%/~\[\]{}-]+")  # no folder's name becomes a command on the line that it is put into


def main(arguments: list[str]) -> int:
    """Print the lines that install completion, or the words that the last one of $COMP_LINE may become."""
    action, _, shell = arguments[0].partition("=") if len(arguments) == 1 else ("", "", "")
    if action not in ("install", "uninstall", "query") or shell not in ("bash", "zsh", "fish"):
        raise UserError(
            'leyden -sc takes install=, uninstall= or query= with bash, zsh or fish: eval "$(leyden -sc install=bash)"'
        )
    if action == "query":
        *words, word = os.environ.get("COMP_LINE", "").lstrip().split(" ")
        found = [w for w in complete([w for w in words[1:] if w], word) if SAFE.fullmatch(w)]
        print(("\n" if shell == "fish" else " ").join(found))
    else:
        print(hydra(arguments[0]), end="")
    return 0


def complete(before: list[str], word: str) -> list[str]:
    """Return what `word` may become after the words before it, the command among them."""
    command, given = (before[0], before[1:]) if before else ("", [])
    if not command:
        return _starting(word, COMMANDS)
    if command in COMPOSING:
        return keys(given, word)
    if command == "find":
        return keys(given[1:], word) if given else _starting(word, ["lr", "batch_size"])
    if command in ON_SEVERAL or (command in ON_RUNS and not given):
        from leyden.run.find import list_runs  # half a second

        return _starting(word, ["last", *(run.name for run in reversed(list_runs()[-NUM_RECENT:]))])
    if command in ("evaluate", "rerun"):
        return keys([*_choices(given[0]), *given[1:]], word)
    return []


def keys(given: list[str], word: str) -> list[str]:
    """Let Hydra complete a choice or key; a command line that is wrong so far has no completion."""
    overrides = [w for w in given if not w.startswith("-")]
    os.environ["COMP_LINE"] = " ".join(["leyden", *search_path_override(), *overrides, word])
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return hydra("query=fish").splitlines()
    except (Exception, SystemExit):
        if debug():
            raise
        return []


def hydra(request: str) -> str:
    """Return what Hydra's own completion prints for the executable `leyden`."""
    import hydra

    find_plugins()
    before = sys.argv
    sys.argv = ["leyden", "--shell-completion", request]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            hydra.main(config_path=str(CONF), config_name="train", **VERSION_BASE)(_nothing)()
        return printed.getvalue()
    finally:
        sys.argv = before


def _starting(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]


def _choices(name: str) -> list[str]:
    """Return what a run's config was composed of."""
    from leyden.run.find import find_run

    try:
        choices = find_run(name).manifest.get("choices", {})
    except UserError:
        return []
    return [f"{group}={choice}" for group, choice in choices.items() if isinstance(choice, str)]


def _nothing(cfg: object) -> None:
    """What Hydra would run, if it were not asked to complete."""
