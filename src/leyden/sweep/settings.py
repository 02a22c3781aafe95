"""The options of `hydra.sweeper`: the sampler, the pruner, the objectives, and the limits of a sweep."""

import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from hydra.errors import HydraException
from numpy.random import SeedSequence
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from leyden.config import signatures
from leyden.config.check import target_problems, validate_options
from leyden.config.directions import direction, monitor_of_config
from leyden.config.instantiate import declared_packages, instantiate, is_inside
from leyden.config.run_config import RunConfig
from leyden.errors import UserError, nearest
from leyden.metric_names import metric_name

SAMPLERS: dict[str, dict[str, Any]] = {
    "grid": {},
    "random": {"_target_": "optuna.samplers.RandomSampler"},
    "qmc": {"_target_": "optuna.samplers.QMCSampler", "scramble": True},
    "tpe": {"_target_": "optuna.samplers.TPESampler", "constant_liar": True},
    "gp": {"_target_": "optuna.samplers.GPSampler"},
    "cmaes": {"_target_": "optuna.samplers.CmaEsSampler"},
    "nsga2": {"_target_": "optuna.samplers.NSGAIISampler"},
}
PRUNERS: dict[str, dict[str, Any]] = {
    "none": {},
    # never prunes before the third validation; experiments/LOG.md has the cost of earlier pruning
    "median": {"_target_": "optuna.pruners.MedianPruner", "n_warmup_steps": 3},
    "asha": {"_target_": "optuna.pruners.SuccessiveHalvingPruner", "min_resource": 3, "reduction_factor": 3},
    "hyperband": {"_target_": "optuna.pruners.HyperbandPruner"},
}
MULTI_OBJECTIVE_SAMPLERS = ("grid", "random", "qmc", "tpe", "nsga2")  # no pruner takes several objectives
MIN_PAIRS = 3  # seeds or folds that two points must share before a race can end one of them
Direction = Literal["minimize", "maximize"]
DIRECTIONS: dict[str, Direction] = {"min": "minimize", "max": "maximize"}


class Objective(NamedTuple):
    """A metric of a run, and whether to minimize or maximize it."""

    metric: str
    direction: Direction


class Settings(BaseModel):
    """The options that conf/hydra/sweeper/leyden.yaml explains."""

    model_config = ConfigDict(extra="forbid", strict=True)
    sampler: str | dict
    pruner: str | dict
    n_trials: PositiveInt | None
    n_jobs: PositiveInt | None
    objective: str | list[str] | None
    direction: Direction | list[Direction] | None
    params: dict
    pairs: dict | list[dict] | None
    enqueue: list[dict]
    seeds: PositiveInt | Annotated[list[NonNegativeInt], Field(min_length=1)] | None
    folds: Annotated[int, Field(ge=2)] | None
    race: Annotated[float, Field(gt=0, lt=1)] | None
    retries: NonNegativeInt
    seed: NonNegativeInt
    storage: str | None

    @classmethod
    def of(cls, node: dict) -> "Settings":
        """Check the composed node `hydra.sweeper`.

        Raises:
            UserError: for an unknown option, an invalid value, or options that exclude each other.
        """
        settings = validate_options(cls, node, "hydra.sweeper")
        _check_choice("sampler", settings.sampler, SAMPLERS)
        _check_choice("pruner", settings.pruner, PRUNERS)
        if settings.is_grid and settings.enqueue:
            raise UserError(
                "hydra.sweeper.enqueue: a grid trains all of its points anyway; enqueue is for the other samplers"
            )
        if not settings.is_grid and settings.n_trials is None:
            raise UserError(f"hydra.sweeper.sampler={settings.sampler} has no end: write hydra.sweeper.n_trials=…")
        if isinstance(settings.seeds, list) and len(set(settings.seeds)) < len(settings.seeds):
            raise UserError(f"seeds={settings.seeds}: a seed is listed twice")
        if settings.race and not (settings.seeds or settings.folds):
            raise UserError("hydra.sweeper.race compares the seeds or folds of points: write seeds=… or folds=…")
        return settings

    @property
    def is_grid(self) -> bool:
        """Whether all points are known before the first one is trained."""
        return self.sampler == "grid"

    @property
    def uses_project_code(self) -> bool:
        """Whether the sampler or the pruner is a class of the user's project."""
        targets = [str(node.get("_target_")) for node in (self.sampler, self.pruner) if isinstance(node, dict)]
        return any(is_inside(target, declared_packages()) for target in targets)

    @property
    def prunes(self) -> bool:
        """Whether a run may be stopped early because of the values that it reports."""
        return self.pruner != "none"

    def objectives(self, config: RunConfig) -> list[Objective]:
        """Return the objectives: those that the user asked for, else the metric that chooses a run's best checkpoint.

        Raises:
            UserError: if the metric or its direction is not known.
        """
        monitor = monitor_of_config(config)
        metrics = self._metrics or ([monitor[0]] if monitor else [])
        if not metrics:
            raise UserError(
                "hydra.sweeper.objective: this model names no metric that chooses its best checkpoint: write "
                "hydra.sweeper.objective=val/… hydra.sweeper.direction=minimize, or maximize"
            )
        directions = self.direction if isinstance(self.direction, list) else [self.direction] * len(metrics)
        modes = {name: mode for name in metrics if (mode := direction(config, name))} | dict(
            [monitor] if monitor else []
        )
        return self._pair_with_directions(metrics, directions, {name: DIRECTIONS[mode] for name, mode in modes.items()})

    def returned_objectives(self) -> list[Objective]:
        """Return the objectives of a task that makes no run: the number that it returns, or one for each `direction`.

        Raises:
            UserError: if `objective` and `direction` have different lengths.
        """
        directions = self.direction if isinstance(self.direction, list) else [self.direction or "minimize"]
        names = [f"value{i}" for i in range(len(directions))] if len(directions) > 1 else ["value"]
        return self._pair_with_directions(self._metrics or names, directions, {})

    @property
    def _metrics(self) -> list[str]:
        """The metrics that the user asked for."""
        names = [self.objective] if isinstance(self.objective, str) else self.objective or []
        return [metric_name(name) for name in names]

    def _pair_with_directions(
        self, metrics: list[str], directions: Sequence[Direction | None], defaults: dict[str, Direction]
    ) -> list[Objective]:
        """Pair metrics with their directions, and check that the other options allow these objectives."""
        if len(directions) != len(metrics):
            raise UserError(
                f"hydra.sweeper.direction has {len(directions)} values, and hydra.sweeper.objective has {len(metrics)}"
            )
        objectives = []
        for metric, user_direction in zip(metrics, directions, strict=True):
            direction = user_direction or defaults.get(metric)
            if direction is None:
                raise UserError(
                    f"hydra.sweeper.objective={metric} has no known direction: write hydra.sweeper.direction=maximize, "
                    "or minimize"
                )
            objectives.append(Objective(metric, direction))
        if len(set(metrics)) < len(metrics):
            raise UserError(f"hydra.sweeper.objective={self.objective}: a metric is listed twice")
        if len(objectives) > 1:
            if self.prunes or self.race:
                key = "pruner" if self.prunes else "race"
                raise UserError(f"hydra.sweeper.{key} needs one objective, not {len(objectives)}")
            if isinstance(self.sampler, str) and self.sampler not in MULTI_OBJECTIVE_SAMPLERS:
                raise UserError(
                    f"hydra.sweeper.sampler={self.sampler} takes one objective, not {len(objectives)}; there are: "
                    f"{', '.join(MULTI_OBJECTIVE_SAMPLERS)}"
                )
        elif self.prunes and not objectives[0].metric.startswith("val/"):
            raise UserError(
                f"hydra.sweeper.pruner={self.pruner} needs an objective that every validation logs, val/…, not "
                f"{objectives[0].metric}"
            )
        return objectives

    def build_sampler(self, points: Sequence[dict], number: int) -> BaseSampler:
        """Build a trial's sampler, whose draws depend only on the seed and the trial's number.

        `points` are the points of a grid; a trial that retries another may have a number beyond them.
        """
        if self.is_grid:
            point = points[number] if number < len(points) else {}
            with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                return PartialFixedSampler(point, RandomSampler())
        node = SAMPLERS[self.sampler] if isinstance(self.sampler, str) else self.sampler
        signature = signatures.signature(node["_target_"])
        entropy = [self.seed] if self.sampler == "qmc" else [self.seed, number]  # qmc: one sequence for all trials
        seed = int(SeedSequence(entropy).generate_state(1)[0])  # samplers with similar seeds may draw similar points
        seed_argument = {"seed": seed} if signature and "seed" in signature.parameters and "seed" not in node else {}
        return _build("sampler", node, BaseSampler, **seed_argument)

    def build_pruner(self) -> BasePruner:
        """Build the pruner, which decides which runs end early."""
        if not self.prunes:
            return NopPruner()
        node = PRUNERS[self.pruner] if isinstance(self.pruner, str) else self.pruner
        return _build("pruner", node, BasePruner)


def _build(key: str, node: dict, base_class: type, **arguments: Any) -> Any:
    try:
        instance = instantiate(node, f"hydra.sweeper.{key}", **arguments)
    except (ImportError, HydraException) as error:
        raise UserError(f"hydra.sweeper.{key}: {' '.join(str(error).split())}") from error
    if not isinstance(instance, base_class):
        raise UserError(f"hydra.sweeper.{key}._target_={node['_target_']} is not an Optuna {key}")
    return instance


def _check_choice(key: str, choice: str | dict, choices: dict) -> None:
    if isinstance(choice, str):
        if choice not in choices:
            raise UserError(f"hydra.sweeper.{key}={choice}: there is no such {key}{nearest(choice, choices)}")
        return
    if not isinstance(choice.get("_target_"), str):
        raise UserError(
            f"hydra.sweeper.{key} is a name ({', '.join(choices)}) or a node with the _target_ of an Optuna {key}"
        )
    if problems := [text for _, text in target_problems(f"hydra.sweeper.{key}", choice, {})]:
        raise UserError("\n".join(problems))
