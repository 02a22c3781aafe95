"""`leyden -sc install=SHELL` and `query=SHELL`: completion for bash, zsh and fish, through Hydra's completion."""

import contextlib
import io
import os
import re
from collections.abc import Iterable

from leyden.commands.catalogue import COMMANDS
from leyden.config.hydra_node import hydra_initialized
from leyden.config.yaml_files import is_base
from leyden.console import debug
from leyden.errors import UserError

MAX_RUNS = 30
# the shell inserts completions unquoted, so a folder's name could run a command without this restriction
SAFE_WORD = re.compile(r"[\w.,:=+@%/~\[\]{}-]+")


def main(arguments: list[str]) -> int:
    """Print the script that installs completion, or the completions of the last word of $COMP_LINE."""
    action, _, shell = arguments[0].partition("=") if len(arguments) == 1 else ("", "", "")
    if action not in ("install", "uninstall", "query") or shell not in ("bash", "zsh", "fish"):
        raise UserError(
            'leyden -sc takes install=, uninstall= or query= with bash, zsh or fish: eval "$(leyden -sc install=bash)"'
        )
    if action == "query":
        *words, word = os.environ.get("COMP_LINE", "").lstrip().split(" ")
        completions = [w for w in complete([w for w in words[1:] if w], word) if SAFE_WORD.fullmatch(w)]
        print(("\n" if shell == "fish" else " ").join(completions))
    else:
        print(hydra_output(arguments[0]), end="")
    return 0


def complete(earlier_words: list[str], word: str) -> list[str]:
    """Return the completions of `word`; the first of the earlier words is the command."""
    if not earlier_words:
        return _filter_by_prefix(word, COMMANDS)
    name, *arguments = earlier_words
    kind = COMMANDS[name].arguments if name in COMMANDS else "other"
    if kind == "overrides":
        return complete_override(arguments, word)
    if kind == "finder":
        return complete_override(arguments[1:], word) if arguments else _filter_by_prefix(word, ["lr", "batch_size"])
    if kind == "runs" or (kind.startswith("run") and not arguments):
        from leyden.run.find import list_runs  # importing it takes half a second

        return _filter_by_prefix(word, ["last", *(run.name for run in reversed(list_runs()[-MAX_RUNS:]))])
    if kind == "run and overrides":
        return complete_override([*_choices_of_run(arguments[0]), *arguments[1:]], word)
    return []


def complete_override(arguments: list[str], word: str) -> list[str]:
    """Let Hydra complete a choice or key; return no completions if an earlier override is wrong."""
    overrides = [w for w in arguments if not w.startswith("-")]
    os.environ["COMP_LINE"] = " ".join(["leyden", *overrides, word])
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            words = hydra_output("query=fish").splitlines()
        return [w for w in words if not is_base(w.rpartition("=")[2])]
    except (Exception, SystemExit):
        if debug():
            raise
        return []


def hydra_output(request: str) -> str:
    """Return what Hydra's completion prints for the executable `leyden`."""
    with hydra_initialized() as hydra, contextlib.redirect_stdout(io.StringIO()) as stdout:
        hydra.shell_completion("train", [request])
    return stdout.getvalue()


def _filter_by_prefix(prefix: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(prefix)]


def _choices_of_run(name: str) -> list[str]:
    """Return the choices from which a run's config was composed, as overrides."""
    from leyden.run.find import find_run

    try:
        choices = find_run(name).manifest.get("choices", {})
    except UserError:
        return []
    return [f"{group}={choice}" for group, choice in choices.items() if isinstance(choice, str)]
