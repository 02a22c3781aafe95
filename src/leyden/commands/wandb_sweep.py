"""`leyden wandb-sweep …`: write a sweep as a YAML file for W&B, whose server and agents then search and train."""

import shlex

import yaml

from leyden.commands.arguments import Arguments


def main(arguments: list[str]) -> int:
    """Print the YAML that `wandb sweep` takes."""
    parser = Arguments(
        "wandb-sweep",
        "Write a sweep for W&B: leyden wandb-sweep … > sweep.yaml; `wandb sweep sweep.yaml` then creates it and prints "
        "the `wandb agent …` that trains one point after another, on each machine on which it is started.",
    )
    parser.add_overrides(multirun=True)
    overrides = parser.parse_intermixed_args(arguments).overrides
    from leyden.sweep.wandb import plan_sweep, translate  # loads optuna, which takes a third of a second

    sweep = translate(*plan_sweep(overrides))
    print(f"# {shlex.join(['leyden', 'wandb-sweep', *overrides])}")
    print("# wandb sweep FILE, then the wandb agent that it prints, once for each run that should train at a time")
    print(yaml.safe_dump(sweep, sort_keys=False, default_flow_style=None, width=120), end="")
    return 0
