"""The table of commands, with their help, arguments and ranks, for the help, the completion and the dispatch."""

from typing import Literal, NamedTuple

Arguments = Literal["overrides", "run", "runs", "run and overrides", "finder", "other"]
# Which ranks of torchrun or srun run a command. "first": only rank 0; "follow": rank 0, and the others join the runs
# that it starts; "each": every rank does a share of the work.
Ranks = Literal["first", "follow", "each"]


class Command(NamedTuple):
    """A line of `leyden --help`, the kind of arguments that completion offers, and the ranks that run the command."""

    help: str
    arguments: Arguments = "other"
    ranks: Ranks = "first"


COMMANDS = {
    "train": Command(
        "compose a config and train: leyden train model=… data=… accelerator=… [key=value …] [-m]",
        "overrides",
        ranks="follow",
    ),
    "check": Command("compose and check a config without training: leyden check [overrides] [-m]", "overrides"),
    "resume": Command("continue a stopped or killed run or sweep: leyden resume RUN|SWEEP", "run", ranks="follow"),
    "rerun": Command(
        "train again from a run's frozen config: leyden rerun RUN [overrides]", "run and overrides", ranks="follow"
    ),
    "evaluate": Command("measure a run's checkpoint on a split: leyden evaluate RUN [overrides]", "run and overrides"),
    "find": Command("suggest a learning rate or a batch size: leyden find lr|batch_size [overrides]", "finder"),
    "compare": Command("compare groups of runs, with intervals and tests: leyden compare A B …", "runs"),
    "predict": Command("predict for new files with a run's model: leyden predict RUN FILE…", "run", ranks="each"),
    "sample": Command("generate text or pictures with a run's model: leyden sample RUN", "run"),
    "export": Command("write a checkpoint's weights to a file: leyden export RUN --weights FILE.safetensors", "run"),
    "ls": Command("list the runs: leyden ls [NAME-PART] [--tag TAG]; or the sweeps: leyden ls --sweep"),
    "submit": Command(
        "submit stopped runs to SLURM again: leyden submit RUN|SWEEP… [hydra.launcher.KEY=VALUE]", "runs"
    ),
    "wait": Command("wait until runs have ended: leyden wait RUN|SWEEP…", "runs"),
    "cancel": Command("cancel the SLURM jobs of runs: leyden cancel RUN|SWEEP…", "runs"),
    "show": Command("show a run's config, status, metrics and curves, or a sweep: leyden show RUN|SWEEP", "run"),
    "doctor": Command("report what this machine has: Python, torch, GPUs, W&B, SLURM, data, disk"),
    "wandb-sweep": Command("write a sweep for W&B's server and agents: leyden wandb-sweep … > sweep.yaml", "overrides"),
    "adopt": Command("write conf/ for a project made from lightning-hydra-template: leyden adopt PATH"),
    "new": Command("write a new project that is ready to train: leyden new PATH"),
}
