"""Translates a sweep into a W&B sweep config; W&B's server then chooses the points, and its agents train them.

The keys: https://docs.wandb.ai/models/sweeps/sweep-config-keys
"""

import math
import re
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution

from leyden.config.passwords import mask
from leyden.errors import UserError
from leyden.launch import slurm
from leyden.sweep import plan as plans
from leyden.sweep.plan import Plan
from leyden.sweep.space import Axis, text_of

LOGGER = "leyden.loggers.Wandb"
METHODS = {"grid": "grid", "random": "random", "tpe": "bayes", "gp": "bayes"}
HYPERBAND = {"type": "hyperband", "min_iter": 1, "eta": 3}  # an iteration is one validation, as in leyden's own sweeps
STOPPERS = {"none": None, "asha": HYPERBAND, "hyperband": HYPERBAND}
PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
UNSUPPORTED_OPTIONS = ("enqueue", "race", "retries", "seed", "storage")  # options without a counterpart in W&B


def plan_sweep(overrides: list[str]) -> tuple[Plan, list[dict]]:
    """Plan and check a sweep as `leyden train -m` does, with W&B's logger; also return the configs of the runs.

    Raises:
        UserError: for mistakes, and for overrides of settings that the agent decides.
    """
    reason = "W&B chooses the points, and its agent starts the runs on its own machine"
    for item in overrides:
        if re.match(r"[+~]*hydra\b", item) and not re.match(r"\+*hydra\.sweeper\.", item):
            raise UserError(f"{item}: {reason}: leave it out")
    with plans.open_plan(overrides) as plan:
        hydra_node, logger_overrides = plan.master.hydra, _logger_overrides(plan.master)
        _check(plan)
    if hydra_node.launcher._target_ == slurm.LAUNCHER:
        raise UserError(
            f"accelerator={hydra_node.runtime.choices.accelerator}: {reason}: start it in a job of the queue"
        )
    with plans.open_plan(overrides, logger_overrides) as plan:
        return plan, [composition.config for composition in plan.check()]


def _logger_overrides(master: Any) -> list[str]:
    """Return the override that chooses W&B's logger, if the sweep does not choose it itself."""
    loggers = dict(master.logger or {})
    if any(node and node.get("_target_") == LOGGER for node in loggers.values()):
        return []
    if loggers:
        names = ",".join(["wandb", *loggers])
        raise UserError(f"a sweep on W&B needs its logger beside {', '.join(loggers)}: write logger=[{names}]")
    return ["logger=wandb"]


def translate(plan: Plan, configs: list[dict]) -> dict[str, Any]:
    """Return the sweep as the dict that `wandb sweep` reads as YAML.

    Raises:
        UserError: for a sweep that W&B cannot express.
    """
    settings, axes = plan.settings, plan.space.axes
    objectives = settings.objectives(configs[0])
    if len(objectives) > 1:
        raise UserError(f"hydra.sweeper.objective has {len(objectives)} metrics, and a sweep on W&B has one")
    fixed_overrides = [i for i in plan.space.items if isinstance(i, str) and not i.startswith("sweep=")]
    shared_overrides, repeated_parameters = _seeds_and_folds(plan.jobs)
    parameters = {axis.name: parameter(axis, settings.is_grid) for axis in axes} | repeated_parameters
    if not parameters:
        raise UserError("nothing is varied: write a key with several values, model.net.width=4,8,16")
    overrides = [*fixed_overrides, *shared_overrides, *_new_key_overrides(axes)]
    names = {config["name"] for config in configs}
    logger = next(node for node in configs[0]["logger"].values() if node and node["_target_"] == LOGGER)
    sweep = {
        "name": names.pop() if len(names) == 1 else None,
        "project": logger["project"],
        "entity": logger["entity"],
        "program": "leyden",
        "command": ["${env}", "leyden", "train", *overrides, "${args_no_hyphens}"],
        "method": METHODS[str(settings.sampler)],
        "metric": {"name": objectives[0].metric, "goal": objectives[0].direction},
        "parameters": parameters,
        "early_terminate": STOPPERS[str(settings.pruner)],
        "run_cap": settings.n_trials,
    }
    return {key: value for key, value in sweep.items() if value is not None}


def _check(plan: Plan) -> None:
    settings = plan.settings
    if str(settings.sampler) not in METHODS:
        raise UserError(
            f"hydra.sweeper.sampler={settings.sampler}: W&B has grid, random, and bayes (written tpe or gp)"
        )
    if str(settings.pruner) not in STOPPERS:
        raise UserError(
            f"hydra.sweeper.pruner={settings.pruner}: W&B stops runs by hyperband: write hyperband, or asha"
        )
    for key in UNSUPPORTED_OPTIONS:
        if value := getattr(settings, key):
            raise UserError(f"hydra.sweeper.{key}={mask(str(value))}: a sweep on W&B has no such option: leave it out")
    if len(plan.jobs) > 1 and (not settings.is_grid or settings.n_trials):
        raise UserError(
            "seeds and folds: W&B does not average runs, so they need a whole grid: "
            "hydra.sweeper.sampler=grid without n_trials"
        )
    for axis in plan.space.axes:
        if axis.when:
            key, values = next(iter(axis.when.items()))
            raise UserError(
                f"{axis.name}: on W&B every run has every key, not only those with {key}={','.join(values)}: "
                f"make a sweep for each {key}"
            )
        if axis.pairs:
            raise UserError(f"pairs: on W&B the values of {axis.name} cannot go together: make a sweep for each pair")
        if not PARAMETER_NAME.fullmatch(axis.name):
            raise UserError(f"{axis.name}: W&B allows only letters, digits, _, . and - in the name of a key")


def _seeds_and_folds(jobs: list[list[str]]) -> tuple[list[str], dict[str, dict]]:
    """Return the overrides that all jobs of a point share, and W&B parameters for those that differ."""
    values_by_key: dict[str, dict[int, None]] = {}
    for key, _, value in (item.partition("=") for job in jobs for item in job):
        values_by_key.setdefault(key, {})[int(value)] = None
    overrides = [
        f"{key}={next(iter(values))}" for key, values in values_by_key.items() if len(values) == 1 or "+" in key
    ]
    return overrides, {
        k.lstrip("+"): {"values": list(values)} for k, values in values_by_key.items() if len(values) > 1
    }


def _new_key_overrides(axes: list[Axis]) -> list[str]:
    """Return overrides that add new keys to the config, since parameter names in W&B have no plus.

    The agent's values come later on the command line and replace these.
    """
    first_values = {a.key: a.distribution.low if a.values is None else a.values[0] for a in axes if "+" in a.key}
    return [f"{key}={text_of(value)}" for key, value in first_values.items()]


def parameter(axis: Axis, is_grid: bool) -> dict[str, Any]:
    """Return an axis as a W&B parameter.

    A grid needs a list of values, and so does a range with steps, because W&B counts its steps from 0.
    """
    match axis.distribution:
        case IntDistribution(low=low, high=high, step=1, log=log) if not is_grid and low < high:
            distribution = {"distribution": "q_log_uniform_values", "q": 1} if log else {"distribution": "int_uniform"}
            return {**distribution, "min": low, "max": high}
        case FloatDistribution(low=low, high=high, log=log) if axis.values is None:
            return {"distribution": "log_uniform_values" if log else "uniform", "min": low, "max": high}
    assert axis.values is not None  # an interval in a grid is refused earlier
    return {"values": [_json_value(value) for value in axis.values]}


def _json_value(value: Any) -> Any:
    """Return a value as override text, unless it is a number that W&B's JSON preserves; 1.0 would become 1."""
    is_plain = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and not value.is_integer())
    return value if is_plain else text_of(value)
