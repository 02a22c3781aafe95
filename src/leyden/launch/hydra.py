"""Training through Hydra: the jobs of a multirun, and Hydra's own flags, which print configs."""

import logging
import sys
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leyden.config.compose import build_composition, explain
from leyden.config.hydra_node import hydra_initialized
from leyden.config.instantiate import declared_packages
from leyden.config.locations import module_path
from leyden.config.overrides import check_overrides, with_absolute_paths
from leyden.config.run_config import as_init
from leyden.distributed.signals import Stop
from leyden.errors import UserError
from leyden.launch.start import start
from leyden.run.directory import Run, cli_arguments, new_run_id, runs_root
from leyden.run.freeze import freeze, with_run_paths
from leyden.run.summary import best_value, print_results

PRINTING_FLAGS = ("--cfg", "-c", "--info", "-i", "--version")  # Hydra's flags that print something
MODIFIERS = ("--resolve", "--package", "-p", "-m", "--multirun")  # flags that modify what those print
SWEEPER = "hydra_plugins.leyden_sweeper.LeydenSweeper"
PRUNING = {"pruning": {"_target_": "leyden.sweep.Pruning"}}  # the callback that prunes jobs of leyden's sweeper


def multirun(overrides: list[str]) -> int:
    """Train a sweep through Hydra's sweeper and launcher; the exit code is 1 when a job failed."""
    overrides = with_absolute_paths(overrides)
    check_overrides(overrides)
    sweep_dir: list[str] = []
    has_foreign_sweeper = any(a.startswith("hydra/sweeper=") and a != "hydra/sweeper=leyden" for a in overrides)
    if has_foreign_sweeper and not any(a.startswith("hydra.sweep.dir=") for a in overrides):
        sweep_dir = [f"hydra.sweep.dir={runs_root() / 'multirun' / new_run_id()}"]
    cli_arguments[:] = ["train", "-m", *sweep_dir, *overrides]
    arguments = ["hydra.mode=MULTIRUN", *sweep_dir, *overrides]
    try:
        with Stop(), hydra_initialized() as hydra:  # this Stop handles signals between two jobs
            if declared_packages():  # these packages may define Hydra callbacks, which Hydra imports
                sys.path[:] = module_path()
            hydra.multirun("train", train_job, arguments)
        return 0
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(explain(error, overrides)) from error
    finally:
        cli_arguments.clear()


def train_job(cfg: DictConfig) -> float | None:
    """Train one job of a multirun; return the sweeper's objective value."""
    run = freeze_job(cfg)
    print_results(run, start(run).results)
    return best_value(run)


def freeze_job(cfg: DictConfig) -> Run:
    """Make the run of a multirun's job in Hydra's output directory, or return the run if it exists already."""
    from hydra.core.hydra_config import HydraConfig

    hydra_cfg: Any = HydraConfig.get()  # a DictConfig, whatever its annotation says
    number, path = int(hydra_cfg.job.num), Path(hydra_cfg.runtime.output_dir).resolve()
    composition = build_composition(cfg, OmegaConf.create(hydra_cfg), list(hydra_cfg.overrides.task))
    if (composition.raw.get("feature") or {}).get("run") == "last":
        raise UserError("feature.run=last means another run in each job of a sweep: name the run")
    if (as_init(composition.config.get("init")) or {}).get("weights") == "last":
        raise UserError("init=last means another run in each job of this sweep: name the run")
    composition = with_run_paths(composition)
    if not (path / "status.json").exists():
        (path / "config.yaml").unlink(missing_ok=True)  # the sweep was killed while it made this run
    elif (run := Run(path)).manifest.get("job") == number and run.config == composition.config:
        return run  # the sweep was resumed
    has_leyden_sweeper = hydra_cfg.sweeper._target_ == SWEEPER
    position = {
        "name": Run(path).sweep,
        "trial": number // _jobs_per_trial(path.parent) if has_leyden_sweeper else None,
        "job": number,
        "seed": composition.raw["seed"],  # the seed that the user wrote; the seed of a fold is derived from it
        "fold": composition.config["data"].get("fold"),
    }
    position_in_sweep = position if position["name"] else None
    return freeze(
        composition, path, job=number, sweep=position_in_sweep, callbacks=PRUNING if has_leyden_sweeper else {}
    )


def _jobs_per_trial(folder: Path) -> int:
    """Return the number of runs for each point of leyden's sweeper: one for each seed and fold.

    The config of a job holds only its own seed and fold, so the config of the sweep is read.
    """
    sweeper = OmegaConf.load(folder / "multirun.yaml").hydra.sweeper
    seeds = len(sweeper.seeds) if isinstance(sweeper.seeds, ListConfig) else sweeper.seeds or 1
    return seeds * (sweeper.folds or 1)


def print_config(arguments: list[str]) -> int:
    """Let Hydra print the output of --cfg, --info and similar flags, without training.

    Raises:
        UserError: if a flag is not one of these, or Hydra cannot compose the overrides.
    """
    flags = [a for a in arguments if a.startswith("-")]
    names = {a: a.partition("=")[0] for a in flags}  # a flag may carry its value, --cfg=job
    wrong_flags = [a for a in flags if names[a] not in (*PRINTING_FLAGS, *MODIFIERS)]
    wrong_flags = wrong_flags or ([] if set(names.values()) & set(PRINTING_FLAGS) else flags)
    if wrong_flags:  # --experimental-rerun, for example, would unpickle a file
        raise UserError(
            f"leyden train takes overrides, -m, or Hydra's {', '.join(PRINTING_FLAGS)}; not {wrong_flags[0]}"
        )
    parser = get_args_parser()
    parser.prog = "leyden train"
    options = parser.parse_intermixed_args(arguments)
    logging.raiseExceptions = False  # `| head` closes the pipe that Hydra's log handlers write to
    try:
        with hydra_initialized() as hydra:
            if options.cfg:
                hydra.show_cfg("train", options.overrides, options.cfg, options.package, options.resolve)
            else:
                hydra.show_info(options.info, "train", options.overrides)
        return 0
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError) as error:
        raise UserError(explain(error, options.overrides)) from error
