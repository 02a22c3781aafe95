"""`leyden COMMAND …`: run the command that argv names. Heavy imports are left to the commands that need them."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # `python -m` puts the working directory here, and its files would shadow the standard library's

import importlib
import os
import signal
from collections.abc import Callable
from functools import partial

from leyden import __version__
from leyden.commands.catalogue import COMMANDS
from leyden.config.locations import make_folders_absolute, user_file
from leyden.console import complain
from leyden.distributed.world import World, detect_world
from leyden.errors import UserError, nearest
from leyden.launch import deferred_imports
from leyden.launch.exit_code import exit_code


def usage() -> str:
    """Return the text of `leyden --help`."""
    lines = "\n".join(f"  {name:9} {command.help}" for name, command in COMMANDS.items())
    return (
        f"leyden {__version__}: a research run is one directory, from which everything can be started again\n\n"
        f"usage: leyden COMMAND …\n\n{lines}\n\n"
        "RUN is a path, `last`, or a unique part of a run's name.\n"
        "Exit codes: 0 success, 1 failure, 2 a wrong request, 128 + N stopped by signal N (130 Ctrl-C, 143 SIGTERM).\n"
        "`leyden COMMAND --help` lists a command's options, `leyden train --help` the choices of every config group.\n"
        "LEYDEN_DEBUG=1 shows tracebacks."
    )


def main(argv: list[str] | None = None) -> int:
    """Run a command; return the exit code."""
    deferred_imports.install()
    # on shared cores, OpenMP threads that spin while they wait take 5 times the wall time
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = sys.argv[1:] if argv is None else argv
    name, arguments = (argv[0], argv[1:]) if argv else ("", [])
    if name == "help" and arguments:  # leyden help train
        name, arguments = arguments[0], ["--help"]
    if name in ("", "-h", "--help", "help"):
        print(usage())
        return 0 if name else 2
    if name in ("-V", "--version"):
        print(f"leyden {__version__}")
        return 0
    if name in ("-sc", "--shell-completion"):
        name = "complete"
    elif name not in COMMANDS:
        complain(f"there is no command {name}{nearest(name, COMMANDS)}")
        return 2
    return run_command(name, arguments)


def run_command(name: str, arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    try:
        if os.path.isfile(user_file()):  # noqa: PTH113  Path.is_file may raise an error for an unreadable folder
            from leyden.config.defaults import set_folders

            set_folders()
        make_folders_absolute()
        world = detect_world()
    except UserError as error:
        complain(str(error))
        return 2

    def command() -> int:
        return importlib.import_module(f"leyden.commands.{name.replace('-', '_')}").main(arguments)

    ranks = COMMANDS[name].ranks if name in COMMANDS else "first"  # `complete` is not in the catalogue
    if ranks == "first":
        return exit_code(command) if world is None or world.rank == 0 else 0
    if ranks == "each":
        return exit_code(command) if world is None or world.size == 1 else run_as_rank(world, command)
    if "SLURM_JOB_ID" in os.environ:  # block SLURM's warning until `Stop` handles it, since imports take long
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    if world is None:
        code = exit_code(command)
        if code > 128 and "WANDB_SWEEP_ID" in os.environ:
            # W&B's agent counts any non-zero exit as a failure and gives up after a few; die by the signal instead
            sys.stdout.flush()
            signal.signal(code - 128, signal.SIG_DFL)
            os.kill(os.getpid(), code - 128)
        return code
    from leyden.launch.start import follow_rank_0, roster

    # torchrun or srun started one process per rank: rank 0 runs the command, the others join the runs that it starts
    code = exit_code(partial(follow_rank_0, world) if world.rank else command)
    if world.rank == 0:
        exit_code(lambda: roster(world).dismiss(code))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # do not wait for the threads of a backend that waits for a lost rank


def run_as_rank(world: World, command: Callable[[], int]) -> int:
    """Run a command as one of several ranks; rank 0 may wait for the others. Return this rank's exit code."""
    from leyden.launch.start import roster

    def joined_command() -> int:
        # join before the command runs: rank 0 may host the ranks' store, and it ends soon if the command fails
        ranks = roster(world)
        code = exit_code(command)
        if world.rank:
            ranks.report(code)
        return code

    return exit_code(joined_command)


if __name__ == "__main__":
    sys.exit(main())
