"""The script for sbatch: the options of `hydra.launcher` as directives, then srun with one task for each rank."""

import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

from leyden.config.check import validate_options
from leyden.config.locations import project_root
from leyden.config.run_config import RunConfig
from leyden.errors import UserError

SHELL = ("setup", "extra")  # options with shell commands, which must not come from a run's files


def _one_line(text: str) -> str:
    if not text or not text.isprintable() or "\\" in text:
        raise ValueError("should be one line of printable characters without \\")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Text = Line | int | None  # an int too, because a partition may be named 2080
Key = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
TIME = "a time limit needs a colon (30:00 is 30 minutes) and, in a file, quotes: YAML reads 1:30:00 as a number"


class Options(BaseModel):
    """The options of `hydra.launcher`; null means the cluster's default. See conf/hydra/launcher/slurm.yaml."""

    model_config = ConfigDict(extra="forbid", strict=True)
    partition: Text
    account: Text
    qos: Text
    time: Annotated[str, Field(pattern=r"^(\d+-\d+(:\d+){0,2}|\d+(:\d+){1,2})$")] | None = Field(description=TIME)
    gres: Text
    constraint: Text
    cpus_per_task: PositiveInt | None
    mem: Text
    max_parallel: PositiveInt | None
    warn_seconds: NonNegativeInt
    setup: list[str]
    extra: dict[Key, Line | int | Literal[True]] | None
    max_code_mb: PositiveFloat
    wait: bool

    @classmethod
    def from_config(cls, node: dict[str, Any]) -> "Options":
        """Check the composed config of `hydra.launcher`.

        Raises:
            UserError: if an option is unknown or has a wrong value.
        """
        options = validate_options(cls, node, "hydra.launcher")
        if options.time and seconds(options.time) <= options.warn_seconds:
            raise UserError(
                f"hydra.launcher.time={options.time} is no longer than the warning before its end, "
                f"hydra.launcher.warn_seconds={options.warn_seconds}"
            )
        return options


def seconds(time: str) -> int:
    """Return the seconds of a time limit as sbatch reads it: minutes:seconds, hours:minutes:seconds, days-hours…"""
    days, _, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    units = (3600, 60, 1) if days or len(parts) == 3 else (60, 1)
    return 86400 * int(days or 0) + sum(part * unit for part, unit in zip(parts, units, strict=False))


class Shape(NamedTuple):
    """The resources that a job asks for."""

    nodes: int
    tasks: int  # on each node
    gpus: int  # on each node


def group_by_shape(configs: Sequence[RunConfig]) -> dict[Shape, list[int]]:
    """Group the indices of configs by the shape of their jobs, because all jobs of an array have the same shape."""
    groups = defaultdict(list)
    for index, config in enumerate(configs):
        groups[shape_of(config["trainer"])].append(index)
    return groups


def shape_of(trainer: dict[str, Any]) -> Shape:
    """Return the resources that a job asks for, given the config of its trainer.

    Raises:
        UserError: if the config does not set the number of nodes or devices.
    """
    nodes, tasks = trainer.get("num_nodes", 1), trainer.get("devices", "auto")
    for key, value in (("num_nodes", nodes), ("devices", tasks)):
        if type(value) is not int or value < 1:
            raise UserError(f"trainer.{key}={value}: SLURM needs to know how many to allocate: write a number")
    return Shape(nodes, tasks, tasks if trainer.get("accelerator") in ("gpu", "cuda") else 0)


def job_script(options: Options, shape: Shape, paths: list[Path], folder: Path, code: list[Path]) -> str:
    """Return the script for sbatch; the i-th task of an array resumes the i-th run.

    Raises:
        UserError: if an option or a path does not fit into a line of the script.
    """
    lines = ["#!/bin/bash"]
    for key, value in _directives(options, shape, len(paths), folder).items():
        lines.append(f"#SBATCH --{key}" + ("" if value is True else f"={_quote(key, str(value))}"))
    lines += ["", "set -e", f"cd {shlex.quote(str(project_root()))}"]
    if code:
        lines.append(f"export PYTHONPATH={shlex.quote(':'.join(map(str, code)))}${{PYTHONPATH:+:$PYTHONPATH}}")
    if options.cpus_per_task:
        lines.append(f"export OMP_NUM_THREADS={options.cpus_per_task}")
    lines += options.setup
    if len(paths) == 1:
        lines.append(f"run={shlex.quote(str(paths[0]))}")
    else:
        lines += ["runs=(", *(f"  {shlex.quote(str(path))}" for path in paths), ")"]
        lines.append('run="${runs[SLURM_ARRAY_TASK_ID]}"')
    cpus = f" --cpus-per-task={options.cpus_per_task}" if options.cpus_per_task else ""  # srun ignores sbatch's option
    # leyden ends the other ranks when one has failed; srun must do it when one has crashed
    lines.append(f'srun --kill-on-bad-exit=1{cpus} {shlex.quote(sys.executable)} -P -m leyden.cli resume "$run"')
    return "\n".join(lines) + "\n"


def _quote(key: str, value: str) -> str:
    """Quote a value for sbatch, which reads quotes as a shell does, but interprets a backslash within them too.

    Raises:
        UserError: if sbatch would misread the value, or it has more than one line.
    """
    try:
        return shlex.quote(_one_line(value))
    except ValueError as error:
        raise UserError(f"sbatch --{key}={value!r}: {error}; some values contain the folder of the run") from None


def _directives(options: Options, shape: Shape, count: int, folder: Path) -> dict[str, Any]:
    gres = options.gres or (f"gpu:{shape.gpus}" if shape.gpus else None)
    limit = f"%{options.max_parallel}" if options.max_parallel else ""
    directives = {
        "job-name": "/".join(folder.parts[-2:]),
        "nodes": shape.nodes,
        "ntasks-per-node": shape.tasks,
        "cpus-per-task": options.cpus_per_task,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "time": options.time,
        "gres": gres,
        "constraint": options.constraint,
        "mem": options.mem,
        "signal": f"USR1@{options.warn_seconds}" if options.warn_seconds else None,
        "requeue": True,
        "open-mode": "append",  # a requeued job appends to its file
        "output": folder / ("slurm-%A_%a.txt" if count > 1 else "slurm-%j.txt"),
        "array": f"0-{count - 1}{limit}" if count > 1 else None,
    }
    extra = {key.replace("_", "-"): value for key, value in (options.extra or {}).items()}
    if conflicts := sorted(directives.keys() & extra.keys()):
        raise UserError(
            f"hydra.launcher.extra.{conflicts[0]}: leyden sets this itself, from hydra.launcher or the trainer"
        )
    return {key: value for key, value in (directives | extra).items() if value is not None}
