"""`leyden train`: compose, check, make the run directory, start it; with -m, one run per job."""

import logging
import os
import sys
from pathlib import Path

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leyden.config.compose import checked, compose, explain, search_path_override
from leyden.config.groups import choices
from leyden.config.hydra_node import VERSION_BASE, find_plugins, hydra_at_work
from leyden.config.instantiate import declared_packages
from leyden.config.locations import CONF, module_path, project_conf, relative_to_cwd
from leyden.console import console, put
from leyden.errors import UserError
from leyden.launch import slurm
from leyden.launch.start import Outcome, begun, start
from leyden.run.directory import Run, cli_arguments, new_run_id, runs_root
from leyden.signals import Stop

SHOWING = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--version")  # flags of Hydra's that print
HOW = ("--resolve", "--package", "-p", "-m", "--multirun")  # and those that say how


def main(arguments: list[str]) -> int:
    """Train one run, or hand Hydra's own flags to Hydra."""
    if "-h" in arguments or "--help" in arguments:
        put(usage())
        return 0
    arguments = [a for a in arguments if a not in ("--run", "-r")]
    flags = [a for a in arguments if a.startswith("-")]
    if flags == []:
        composition = compose(arguments)
        if slurm.is_chosen(composition):
            from leyden.commands import submit

            return submit.new(composition)
        path = Path(composition.run_dir) if composition.run_dir else slurm.place(composition.config["name"], arguments)
        if earlier := begun() or (path if slurm.restarted() and path and (path / "config.yaml").exists() else None):
            from leyden.commands import resume

            return resume.main([str(earlier)])
        run = Run.create(composition, path)
        return report(run, start(run))
    if set(flags) <= {"-m", "--multirun"}:
        return multirun([a for a in arguments if a not in flags])
    return print_config(arguments)


def usage() -> str:
    """How to write a train command, and what each group offers."""
    folders = [p for p in (CONF, project_conf()) if p]
    groups = {}
    for folder in folders:
        for group in sorted(g for g in folder.iterdir() if g.is_dir()):
            names = groups.setdefault(group.name, set())
            names |= {file.stem for file in choices(group)}
    groups = {group: names for group, names in groups.items() if names}
    lines = "\n".join(f"  {group:12} {', '.join(sorted(names))}" for group, names in sorted(groups.items()))
    return (
        "usage: leyden train [GROUP=CHOICE …] [KEY=VALUE …] [-m] [--cfg job] [--info defaults-tree]\n\n"
        f"{lines}\n\n"
        "KEY is any key of the config (leyden train --cfg job shows it); +KEY adds one; ~KEY removes one.\n"
        "-m trains every combination of values written with commas: leyden train -m seed=0,1,2"
    )


def report(run: Run, outcome: Outcome) -> int:
    """Show a finished run's numbers, and whether it reached what its experiment expects."""
    from leyden.run.summary import checkpoint_title, metrics_table

    console.print(metrics_table(outcome.results["metrics"], checkpoint_title(outcome.results["checkpoint"])))
    put(f"run: {relative_to_cwd(run.path)}")
    return 0


def print_config(arguments: list[str]) -> int:
    """Let Hydra's own main do --cfg, --info and the like, which print and start nothing."""
    import hydra

    flags = [a for a in arguments if a.startswith("-")]
    named = {a: a.partition("=")[0] for a in flags}  # --cfg=job, too
    wrong = [a for a in flags if named[a] not in (*SHOWING, *HOW)]
    wrong = wrong or ([] if set(named.values()) & set(SHOWING) else flags)
    if wrong:  # --experimental-rerun, for one, would unpickle a file
        raise UserError(f"leyden train takes overrides, -m, or Hydra's {', '.join(SHOWING)}; not {wrong[0]}")
    find_plugins()
    before = sys.argv
    # argparse wants the overrides side by side, so ours joins the user's
    first = next((i for i, a in enumerate(arguments) if a[0] == "~" or (a[0] != "-" and "=" in a)), len(arguments))
    sys.argv = ["leyden train", *arguments[:first], *search_path_override(), *arguments[first:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its exceptions come to us, who print one line
    logging.raiseExceptions = False  # `| head` closes the pipe on Hydra's handlers
    try:
        hydra.main(config_path=str(CONF), config_name="train", **VERSION_BASE)(job)()
        return 0
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(explain(error, arguments)) from error
    finally:
        sys.argv = before
        del os.environ["HYDRA_FULL_ERROR"]


def multirun(overrides: list[str]) -> int:
    """Train a sweep through Hydra's sweeper and launcher; the exit code is 1 when a job failed."""
    foreign = any(a.startswith("hydra/sweeper=") and a != "hydra/sweeper=leyden" for a in overrides)
    chosen = any(a.startswith("hydra.sweep.dir=") for a in overrides)
    folder = [f"hydra.sweep.dir={runs_root() / 'multirun' / new_run_id()}"] if foreign and not chosen else []
    cli_arguments[:] = ["train", "-m", *folder, *overrides]
    given = [*search_path_override(), "hydra.mode=MULTIRUN", *folder, *overrides]
    try:
        with Stop(), hydra_at_work() as hydra:  # Stop: between two jobs
            if declared_packages():  # among them may be callbacks, which Hydra imports itself
                sys.path[:] = module_path()
            hydra.multirun("train", job, given)
        return 0
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(explain(error, overrides)) from error
    finally:
        cli_arguments.clear()


def job(cfg: DictConfig) -> float | None:
    """Train one job of a multirun; return what a sweeper learns from it."""
    run = freeze(cfg)
    report(run, start(run))
    return result(run)


def freeze(cfg: DictConfig) -> Run:
    """Make the run of one job of a multirun, in the directory that Hydra made for it."""
    from hydra.core.hydra_config import HydraConfig

    hydra_cfg = HydraConfig.get()
    number, path = int(hydra_cfg.job.num), Path(hydra_cfg.runtime.output_dir).resolve()
    composition = checked(cfg, OmegaConf.create(hydra_cfg), list(hydra_cfg.overrides.task))
    if not (path / "status.json").exists():
        (path / "config.yaml").unlink(missing_ok=True)  # half made when the sweep was killed
    elif (run := Run(path)).manifest.get("job") == number and run.config == composition.config:
        return run  # of a sweep that goes on
    return Run.create(composition, path, job=number)


def result(run: Run) -> float | None:
    """Return the value of a finished run that its best checkpoint is chosen by."""
    monitor = run.config["checkpoint"].get("monitor") or run.manifest.get("monitor")
    return run.status.get("metrics", {}).get(monitor)
