"""`leyden wandb-sweep …`: write a sweep in W&B's words, whose server and agents then search and train."""

import shlex

import yaml

from leyden.errors import UserError

USAGE = """usage: leyden wandb-sweep [what `leyden train -m` takes] > sweep.yaml

Writes the sweep as W&B has it, whose server then chooses the points:
  wandb sweep sweep.yaml    makes it, and says how to start an agent
  wandb agent …             trains one point after the other, on as many machines as it is started on"""


def main(arguments: list[str]) -> int:
    """Print the YAML that `wandb sweep` takes."""
    if "-h" in arguments or "--help" in arguments:
        print(USAGE)
        return 0
    overrides = [a for a in arguments if a not in ("-m", "--multirun")]
    if unknown := [a for a in overrides if a.startswith("-")]:
        raise UserError(f"leyden wandb-sweep takes overrides, as leyden train -m does, not {unknown[0]}")
    from leyden.sweep.wandb import planned, translate  # with optuna, a third of a second

    sweep = translate(*planned(overrides))
    print(f"# {shlex.join(['leyden', 'wandb-sweep', *overrides])}")
    print("# wandb sweep FILE, then the wandb agent that it names, once for each run that is to train at a time")
    print(yaml.safe_dump(sweep, sort_keys=False, default_flow_style=None, width=120), end="")
    return 0
