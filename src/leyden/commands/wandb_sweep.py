"""`leyden wandb-sweep …`: write a sweep in W&B's words; its server then chooses the points, and its agents train them.

The words: https://docs.wandb.ai/models/sweeps/sweep-config-keys
"""

import math
import re
import shlex
from typing import TYPE_CHECKING, Any

import yaml

from leyden.config.passwords import masked
from leyden.errors import UserError

if TYPE_CHECKING:  # with optuna
    from leyden.sweep.plan import Plan
    from leyden.sweep.space import Axis

USAGE = """usage: leyden wandb-sweep [what `leyden train -m` takes] > sweep.yaml

Writes the sweep as W&B has it, whose server then chooses the points:
  wandb sweep sweep.yaml    makes it, and says how to start an agent
  wandb agent …             trains one point after the other, on as many machines as it is started on"""
LOGGER = "leyden.loggers.Wandb"
METHODS = {"grid": "grid", "random": "random", "tpe": "bayes", "gp": "bayes"}
HYPERBAND = {"type": "hyperband", "min_iter": 1, "eta": 3}  # an iteration is a validation, as in leyden's own sweeps
STOPPERS = {"none": None, "asha": HYPERBAND, "hyperband": HYPERBAND}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")  # of a parameter
UNSAID = ("enqueue", "race", "retries", "seed", "storage")  # options that W&B has nothing for


def main(arguments: list[str]) -> int:
    """Print the YAML that `wandb sweep` takes."""
    if "-h" in arguments or "--help" in arguments:
        print(USAGE)
        return 0
    overrides = [a for a in arguments if a not in ("-m", "--multirun")]
    if unknown := [a for a in overrides if a.startswith("-")]:
        raise UserError(f"leyden wandb-sweep takes overrides, as leyden train -m does, not {unknown[0]}")
    sweep = translate(*planned(overrides))
    print(f"# {shlex.join(['leyden', 'wandb-sweep', *overrides])}")
    print("# wandb sweep FILE, then the wandb agent that it names, once for each run that is to train at a time")
    print(yaml.safe_dump(sweep, sort_keys=False, default_flow_style=None, width=120), end="")
    return 0


def planned(overrides: list[str]) -> tuple["Plan", list[dict]]:
    """Plan and check a sweep as `leyden train -m` does, with W&B's logger; return the configs of runs, too.

    Raises:
        UserError: for what is wrong, or is for the agent to decide.
    """
    from leyden.launch import slurm
    from leyden.sweep import plan

    alone = "W&B chooses the points, and its agent starts the runs, where it runs itself"
    for item in overrides:
        if re.match(r"[+~]*hydra\b", item) and not re.match(r"\+*hydra\.sweeper\.", item):
            raise UserError(f"{item}: {alone}: leave it out")
    with plan.planned(overrides) as found:
        own, more = found.master.hydra, _logger(found.master)
        _check(found)
    if own.launcher._target_ == slurm.LAUNCHER:
        raise UserError(f"accelerator={own.runtime.choices.accelerator}: {alone}: start it in a job of the queue")
    with plan.planned(overrides, more) as found:
        return found, [composition.config for composition in found.check()]


def _logger(master: Any) -> list[str]:
    """What chooses W&B's logger, if nothing does."""
    chosen = dict(master.logger or {})
    if any(node and node.get("_target_") == LOGGER for node in chosen.values()):
        return []
    if chosen:
        names = ",".join(["wandb", *chosen])
        raise UserError(f"a sweep on W&B needs its logger beside {', '.join(chosen)}: write logger=[{names}]")
    return ["logger=wandb"]


def translate(plan: "Plan", configs: list[dict]) -> dict[str, Any]:
    """Say a sweep in W&B's words.

    Raises:
        UserError: for what it has none for.
    """
    settings, axes = plan.settings, plan.space.axes
    goals = settings.objectives(configs[0])
    if len(goals) > 1:
        raise UserError(f"hydra.sweeper.objective has {len(goals)} metrics, and a sweep on W&B has one")
    fixed = [item for item in plan.space.items if isinstance(item, str) and not item.startswith("sweep=")]
    extra, repeated = _seeds_and_folds(plan.jobs)
    parameters = {axis.name: parameter(axis, settings.is_grid) for axis in axes} | repeated
    if not parameters:
        raise UserError("nothing is varied: write a key with several values, model.net.width=4,8,16")
    names = {config["name"] for config in configs}
    logger = next(node for node in configs[0]["logger"].values() if node and node["_target_"] == LOGGER)
    sweep = {
        "name": names.pop() if len(names) == 1 else None,
        "project": logger["project"],
        "entity": logger["entity"],
        "program": "leyden",
        "command": ["${env}", "leyden", "train", *fixed, *extra, *_added(axes), "${args_no_hyphens}"],
        "method": METHODS[str(settings.sampler)],
        "metric": {"name": goals[0].metric, "goal": goals[0].direction},
        "parameters": parameters,
        "early_terminate": STOPPERS[str(settings.pruner)],
        "run_cap": settings.n_trials,
    }
    return {key: value for key, value in sweep.items() if value is not None}


def _check(plan: "Plan") -> None:
    settings = plan.settings
    if str(settings.sampler) not in METHODS:
        raise UserError(
            f"hydra.sweeper.sampler={settings.sampler}: W&B knows grid, random, and for tpe or gp its bayes"
        )
    if str(settings.pruner) not in STOPPERS:
        raise UserError(
            f"hydra.sweeper.pruner={settings.pruner}: W&B stops runs by hyperband: write hyperband, or asha"
        )
    for key in UNSAID:
        if value := getattr(settings, key):
            raise UserError(
                f"hydra.sweeper.{key}={masked(str(value))}: a sweep on W&B has nothing like it: leave it out"
            )
    if len(plan.jobs) > 1 and (not settings.is_grid or settings.n_trials):
        raise UserError(
            "seeds and folds: W&B takes the mean of no runs, so they go with the whole of a grid alone: "
            "hydra.sweeper.sampler=grid without n_trials"
        )
    for axis in plan.space.axes:
        if axis.when:
            key, values = next(iter(axis.when.items()))
            raise UserError(
                f"{axis.name}: on W&B every run has every key, not only those with {key}={','.join(values)}: "
                f"make a sweep for each {key}"
            )
        if not NAME.fullmatch(axis.name):
            raise UserError(f"{axis.name}: a key that W&B varies has letters, digits, _, . and - in its name, no other")


def _seeds_and_folds(jobs: list[list[str]]) -> tuple[list[str], dict[str, dict]]:
    """Return the overrides that all jobs of a point have, and parameters for what differs: any with any."""
    found: dict[str, dict[int, None]] = {}
    for key, _, value in (item.partition("=") for job in jobs for item in job):
        found.setdefault(key, {})[int(value)] = None
    fixed = [f"{key}={next(iter(values))}" for key, values in found.items() if len(values) == 1 or "+" in key]
    return fixed, {key.lstrip("+"): {"values": list(values)} for key, values in found.items() if len(values) > 1}


def _added(axes: list["Axis"]) -> list[str]:
    """Add keys that are new to the config, for W&B's names have no plus; the agent's values come later, and count."""
    from leyden.sweep.space import text_of

    first = {a.written: a.distribution.low if a.values is None else a.values[0] for a in axes if "+" in a.written}
    return [f"{key}={text_of(value)}" for key, value in first.items()]


def parameter(axis: "Axis", is_grid: bool) -> dict[str, Any]:
    """Say an axis in W&B's words; a grid takes values alone, and steps count from 0 there, so they are listed too."""
    from optuna.distributions import FloatDistribution, IntDistribution

    match axis.distribution:
        case IntDistribution(low=low, high=high, step=1, log=log) if not is_grid and low < high:
            rounded = {"distribution": "q_log_uniform_values", "q": 1} if log else {"distribution": "int_uniform"}
            return {**rounded, "min": low, "max": high}
        case FloatDistribution(low=low, high=high, log=log) if axis.values is None:
            return {"distribution": "log_uniform_values" if log else "uniform", "min": low, "max": high}
    assert axis.values is not None  # of an interval, the grid was refused
    return {"values": [_plain(value) for value in axis.values]}


def _plain(value: Any) -> Any:
    """Return a number as it is, or the text of an override; the server, whose JSON has 1 for 1.0, gets that as text."""
    from leyden.sweep.space import text_of

    is_plain = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and not value.is_integer())
    return value if is_plain else text_of(value)
