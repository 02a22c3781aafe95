"""`leyden -sc install=SHELL` and `query=SHELL`: completion for bash, zsh and fish, by Hydra's own."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterable

from leyden.commands.catalogue import COMMANDS
from leyden.config.compose import search_path_override
from leyden.config.hydra_node import VERSION_BASE, find_plugins
from leyden.config.locations import CONF
from leyden.config.yaml_files import is_base
from leyden.console import debug
from leyden.errors import UserError

NUM_RECENT = 30
SAFE = re.compile(r"[\w.,:=+@%/~\[\]{}-]+")  # a folder's name must not become a command on the user's line


def main(arguments: list[str]) -> int:
    """Print the lines that install completion, or the words that the last one of $COMP_LINE may become."""
    action, _, shell = arguments[0].partition("=") if len(arguments) == 1 else ("", "", "")
    if action not in ("install", "uninstall", "query") or shell not in ("bash", "zsh", "fish"):
        raise UserError(
            'leyden -sc takes install=, uninstall= or query= with bash, zsh or fish: eval "$(leyden -sc install=bash)"'
        )
    if action == "query":
        *words, word = os.environ.get("COMP_LINE", "").lstrip().split(" ")
        completions = [w for w in complete([w for w in words[1:] if w], word) if SAFE.fullmatch(w)]
        print(("\n" if shell == "fish" else " ").join(completions))
    else:
        print(hydra(arguments[0]), end="")
    return 0


def complete(before: list[str], word: str) -> list[str]:
    """Return what `word` may become after the words before it, the command among them."""
    if not before:
        return _starting(word, COMMANDS)
    name, *arguments = before
    takes = COMMANDS[name].takes if name in COMMANDS else "other"
    if takes == "overrides":
        return keys(arguments, word)
    if takes == "finder":
        return keys(arguments[1:], word) if arguments else _starting(word, ["lr", "batch_size"])
    if takes == "runs" or (takes.startswith("run") and not arguments):
        from leyden.run.find import list_runs  # half a second

        return _starting(word, ["last", *(run.name for run in reversed(list_runs()[-NUM_RECENT:]))])
    if takes == "run and overrides":
        return keys([*_choices(arguments[0]), *arguments[1:]], word)
    return []


def keys(arguments: list[str], word: str) -> list[str]:
    """Have Hydra complete a choice or key; a command line that is wrong so far has no completion."""
    overrides = [w for w in arguments if not w.startswith("-")]
    os.environ["COMP_LINE"] = " ".join(["leyden", *search_path_override(), *overrides, word])
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            words = hydra("query=fish").splitlines()
        return [w for w in words if not is_base(w.rpartition("=")[2])]
    except (Exception, SystemExit):
        if debug():
            raise
        return []


def hydra(request: str) -> str:
    """Return what Hydra's own completion prints for the executable `leyden`."""
    import hydra

    find_plugins()
    argv_before = sys.argv
    sys.argv = ["leyden", "--shell-completion", request]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            hydra.main(config_path=str(CONF), config_name="train", **VERSION_BASE)(_nothing)()
        return stdout.getvalue()
    finally:
        sys.argv = argv_before


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
