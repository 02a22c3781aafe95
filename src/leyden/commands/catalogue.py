"""The commands: what each is called, what it does, what it takes. Read by the command line and by completion."""

from typing import Literal, NamedTuple

Takes = Literal["overrides", "run", "runs", "run and overrides", "finder", "other"]


class Command(NamedTuple):
    """One line of `leyden --help`."""

    help: str
    takes: Takes = "other"
    every_rank: bool = False  # whether all ranks that torchrun or srun started run it; else rank 0 does alone


COMMANDS = {
    "train": Command(
        "compose a config and train: leyden train model=… data=… accelerator=… [key=value …] [-m]",
        "overrides",
        every_rank=True,
    ),
    "check": Command("compose and check a config, start nothing: leyden check [overrides]", "overrides"),
    "resume": Command(
        "go on with a run or a sweep that was stopped or killed: leyden resume RUN|SWEEP", "run", every_rank=True
    ),
    "rerun": Command(
        "start a run again from its frozen config: leyden rerun RUN [overrides]", "run and overrides", every_rank=True
    ),
    "evaluate": Command(
        "measure a run's best checkpoint on a split: leyden evaluate RUN [overrides]", "run and overrides"
    ),
    "find": Command(
        "measure a learning rate or batch size to begin with: leyden find lr|batch_size [overrides]", "finder"
    ),
    "compare": Command(
        "which runs are better, by how much, and whether that can be known: leyden compare A B …", "runs"
    ),
    "predict": Command("what a run says of new files: leyden predict RUN FILE…", "run"),
    "sample": Command("what a run's model writes or draws: leyden sample RUN", "run"),
    "export": Command("a checkpoint's weights as safetensors: leyden export RUN --weights FILE", "run"),
    "ls": Command("list the runs"),
    "submit": Command(
        "put stopped runs into SLURM's queue again: leyden submit RUN|SWEEP…; hydra/launcher=slurm puts new ones",
        "runs",
        "runs",
    ),
    "wait": Command("stay until runs have ended: leyden wait RUN|SWEEP…", "runs"),
    "cancel": Command("take runs out of SLURM's queue: leyden cancel RUN|SWEEP…", "runs"),
    "show": Command("one run: config, status, metrics, curves: leyden show RUN", "run"),
    "doctor": Command("what this machine has: Python, torch, GPUs, W&B, SLURM, data, disk"),
    "wandb-sweep": Command(
        "a sweep for W&B's server and agents: leyden wandb-sweep … > sweep.yaml; wandb sweep sweep.yaml", "overrides"
    ),
    "new": Command("write a project of your own: leyden new PATH"),
}
