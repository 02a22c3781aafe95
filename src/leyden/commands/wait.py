"""`leyden wait RUN|SWEEP…`: wait until runs have ended, wherever they run, and print their states."""

from leyden.commands.arguments import Arguments
from leyden.console import put
from leyden.launch.queue import iterate_ends
from leyden.run.find import find_runs


def main(arguments: list[str]) -> int:
    """Wait; return 0 if all runs have finished, else 1."""
    parser = Arguments("wait", "Wait until runs have ended; exit with 0 if all have finished, otherwise with 1.")
    parser.add_runs()
    all_finished = True
    for run, state, reason in iterate_ends(find_runs(parser.parse_args(arguments).runs)):
        put(f"{run.name}: {state}" + (f": {reason}" if reason else ""))
        all_finished = all_finished and state == "finished"
    return 0 if all_finished else 1
