"""`leyden -sc install=SHELL` and `query=SHELL`: completion for bash, zsh and fish, as Hydra's, one word further on."""

import os
import sys

from leyden import config
from leyden.cli import COMMANDS
from leyden.errors import UserError

COMPOSING = ("train", "check")  # what takes choices and keys
ON_RUNS = ("evaluate", "predict", "rerun", "resume", "show")
NUM_RECENT = 30


def main(arguments: list[str]) -> int:
    """Print the lines that install completion, or the words that may come next in $COMP_LINE."""
    action, _, shell = arguments[0].partition("=") if len(arguments) == 1 else ("", "", "")
    if action not in ("install", "uninstall", "query") or shell not in ("bash", "zsh", "fish"):
        raise UserError('leyden -sc takes install=, uninstall= or query= with bash, zsh or fish: eval "$(leyden -sc install=bash)"')
    if action != "query":
        return hydra(arguments)
    words = os.environ.get("COMP_LINE", "").lstrip().split(" ")[1:]  # the last one is being written
    words = [word for word in words[:-1] if word] + words[-1:]
    command, rest = (words[0], words[1:]) if len(words) > 1 else ("", words)
    if not command:
        offer(COMMANDS, rest, shell)
    elif command in ON_RUNS and len(rest) == 1:
        from leyden.run import list_runs  # noqa: PLC0415  (half a second)

        offer(["last", *(run.name for run in reversed(list_runs()[-NUM_RECENT:]))], rest, shell)
    elif command in COMPOSING or (command in ("evaluate", "rerun") and not rest[-1].startswith("-")):
        given = rest if command in COMPOSING else rest[1:]
        os.environ["COMP_LINE"] = " ".join(["leyden", *config.search_path_override(), *given])
        return hydra(arguments)
    return 0


def offer(words: object, rest: list[str], shell: str) -> None:
    """Print the words that go on from what is written; what a shell reads, bash parted by blanks, fish by lines."""
    written = rest[-1] if rest else ""
    found = [word for word in words if word.startswith(written)]
    print(("\n" if shell == "fish" else " ").join(found))


def hydra(arguments: list[str]) -> int:
    """Let Hydra's own completion answer for the executable `leyden`."""
    import hydra  # noqa: PLC0415

    before = sys.argv
    sys.argv = ["leyden", "--shell-completion", *arguments]
    try:
        hydra.main(config_path=str(config.CONF), config_name="train", **config.VERSION_BASE)(_nothing)()
    finally:
        sys.argv = before
    return 0


def _nothing(cfg: object) -> None:
    """What Hydra would run, if it were not asked to complete."""
