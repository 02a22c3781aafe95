"""`leyden wait RUN|SWEEP…`: stay until runs have ended, wherever they run, and say how."""

from leyden.commands.arguments import Arguments
from leyden.console import put
from leyden.launch.queue import iterate_ends
from leyden.run.find import find_runs


def main(arguments: list[str]) -> int:
    """Wait; the exit code is 0 when all have finished."""
    parser = Arguments("wait", "Wait until runs have ended; exit code 0 when all are finished.")
    parser.add_argument("runs", nargs="+", metavar="RUN|SWEEP", help="runs, or folders of multiruns")
    options = parser.parse_args(arguments)
    all_finished = True
    for run, state, reason in iterate_ends(find_runs(options.runs)):
        put(f"{run.name}: {state}" + (f": {reason}" if reason else ""))
        all_finished = all_finished and state == "finished"
    return 0 if all_finished else 1
