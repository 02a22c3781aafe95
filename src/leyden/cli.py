"""`leyden COMMAND …`. Imports nothing heavy: each command brings what it needs."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]  # the working directory, where `python -m` puts it: its files would shadow the standard library's

import importlib
import os
import signal
from collections.abc import Callable
from functools import partial

from leyden import __version__
from leyden.config.user_code import describe, place_in_user_code
from leyden.console import complain, debug
from leyden.errors import RunError, UserError, os_error_message

COMMANDS = {
    "train": "compose a config and train: leyden train model=… data=… accelerator=… [key=value …] [-m]",
    "check": "compose and check a config, start nothing: leyden check [overrides]",
    "resume": "go on with a run or a sweep that was stopped or killed: leyden resume RUN|SWEEP",
    "rerun": "start a run again from its frozen config: leyden rerun RUN [overrides]",
    "evaluate": "measure a run's best checkpoint on a split: leyden evaluate RUN [overrides]",
    "find": "measure a learning rate or batch size to begin with: leyden find lr|batch_size [overrides]",
    "compare": "which runs are better, by how much, and whether that can be known: leyden compare A B …",
    "predict": "what a run says of new files: leyden predict RUN FILE…",
    "sample": "what a run's model writes or draws: leyden sample RUN",
    "export": "a checkpoint's weights as safetensors: leyden export RUN --weights FILE",
    "ls": "list the runs",
    "submit": "put stopped runs into SLURM's queue again: leyden submit RUN|SWEEP…; hydra/launcher=slurm puts new ones",
    "wait": "stay until runs have ended: leyden wait RUN|SWEEP…",
    "cancel": "take runs out of SLURM's queue: leyden cancel RUN|SWEEP…",
    "show": "one run: config, status, metrics, curves: leyden show RUN",
    "doctor": "what this machine has: Python, torch, GPUs, W&B, SLURM, data, disk",
    "wandb-sweep": "a sweep for W&B's server and agents: leyden wandb-sweep … > sweep.yaml; wandb sweep sweep.yaml",
    "new": "write a project of your own: leyden new PATH",
}


def usage() -> str:
    """The first screen."""
    lines = "\n".join(f"  {name:9} {text}" for name, text in COMMANDS.items())
    return (
        f"leyden {__version__}: a research run is one directory, and anything can start again from it\n\n"
        f"usage: leyden COMMAND …\n\n{lines}\n\n"
        "RUN is a path, `last`, or a unique part of a run's name.\n"
        "Exit codes: 0 done, 1 failed, 2 a wrong request, 128 + N stopped by signal N (130 Ctrl-C, 143 SIGTERM).\n"
        "LEYDEN_DEBUG=1 shows tracebacks; `leyden train --help` lists what can be chosen."
    )


def main(argv: list[str] | None = None) -> int:
    """Run a command; return the exit code."""
    # OpenMP threads that spin while they wait cost 5 times the wall time on cores that others use too
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    argv = sys.argv[1:] if argv is None else argv
    name, arguments = (argv[0], argv[1:]) if argv else ("", [])
    if name in ("", "-h", "--help", "help"):
        print(usage())
        return 0 if name else 2
    if name in ("-V", "--version"):
        print(f"leyden {__version__}")
        return 0
    if name in ("-sc", "--shell-completion"):
        name = "complete"
    elif name not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(name, COMMANDS, n=1)
        complain(f"there is no command {name}" + (f"; did you mean {close[0]}?" if close else "; see leyden --help"))
        return 2
    return run_command(name, arguments)


def run_command(name: str, arguments: list[str]) -> int:
    """Run one command, and turn what it raises into a line and an exit code."""
    from leyden.distributed.world import given

    try:
        world = given()
    except UserError as error:
        complain(str(error))
        return 2

    def command() -> int:
        return importlib.import_module(f"leyden.commands.{name.replace('-', '_')}").main(arguments)

    if name not in ("train", "resume", "rerun"):
        return exit_code(command) if world is None or world.rank == 0 else 0
    if "SLURM_JOB_ID" in os.environ:  # its warning waits until somebody hears it: imports take long
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    if world is None:
        code = exit_code(command)
        if code > 128 and "WANDB_SWEEP_ID" in os.environ:
            # its agent takes any exit code for a failure, and ends after a few of them; a signal's victim is none
            sys.stdout.flush()
            signal.signal(code - 128, signal.SIG_DFL)
            os.kill(os.getpid(), code - 128)
        return code
    from leyden.launch.start import dismiss, follow

    # torchrun or srun has started many of us: rank 0 does the command, the others join it in the runs that it starts
    code = exit_code(partial(follow, world) if world.rank else command)
    if world.rank == 0:
        exit_code(partial(dismiss, world, code))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a backend that waits for a lost rank must not keep this one


def exit_code(function: Callable[[], int | None]) -> int:
    """Call a function, and turn what it raises into a line and an exit code."""
    from leyden.signals import Interrupted

    try:
        return function() or 0
    except UserError as error:
        if debug():
            raise
        complain(str(error).replace("\n", "\nleyden: "))
        return error.exit_code
    except Interrupted as stopped:
        return stopped.exit_code
    except RunError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, `head` for instance, went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:
        if debug() or not place_in_user_code(error):  # argparse's, which has said all
            raise
        complain(_failure(error))
        return error.code if isinstance(error.code, int) and error.code else 1
    except Exception as error:
        if debug():
            raise
        foreign = isinstance(error, OSError) and not place_in_user_code(error)  # a full disk, a file that is not there
        complain(os_error_message(error) if foreign else _failure(error))
        return 1


def _failure(error: BaseException) -> str:
    """Say what was raised, where, and where more of it is."""
    log = getattr(error, "leyden_log", None)
    return f"{describe(error)} ({f'the traceback is in {log}' if log else 'LEYDEN_DEBUG=1 shows the traceback'})"


if __name__ == "__main__":
    sys.exit(main())
