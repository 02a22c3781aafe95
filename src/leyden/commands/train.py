"""`leyden train`: compose, check, make the run directory, start it; with -m, one run per job."""

import logging
import os
import sys
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leyden import config, slurm
from leyden.check import Composition
from leyden.config import VERSION_BASE, compose
from leyden.console import console
from leyden.errors import UserError
from leyden.launch import Outcome, begun, start
from leyden.places import CONF, project_conf
from leyden.run import Run, runs_root, stamp
from leyden.signals import Interrupted, Stop

_begun: list[int] = []  # numbers of the multirun's jobs that have started in this process


def main(arguments: list[str]) -> int:
    """Train one run, or hand Hydra's own flags to Hydra."""
    if "-h" in arguments or "--help" in arguments:
        print(usage())
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
    if {"-m", "--multirun"} & set(flags):
        return multirun([a for a in arguments if a not in ("-m", "--multirun")])
    return hand_to_hydra(arguments)


def usage() -> str:
    """How to write a train command, and what each group offers."""
    folders = [p for p in (CONF, project_conf()) if p]
    groups = {}
    for folder in folders:
        for group in sorted(g for g in folder.iterdir() if g.is_dir()):
            names = groups.setdefault(group.name, set())
            names |= {p.stem for p in group.glob("*.yaml")}
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
    from leyden.commands.summary import metrics_table

    console.print(metrics_table(outcome.metrics))
    print(f"run: {_relative(run.path)}")
    return 0


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def hand_to_hydra(arguments: list[str]) -> int:
    """Let Hydra's own main do --cfg, --info, --multirun, completion and the like."""
    import hydra

    before = sys.argv
    # argparse wants the overrides side by side, so ours joins the user's
    first = next((i for i, a in enumerate(arguments) if a[0] == "~" or (a[0] != "-" and "=" in a)), len(arguments))
    sys.argv = ["leyden train", *arguments[:first], *config.search_path_override(), *arguments[first:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its exceptions come to us, who print one line
    logging.raiseExceptions = False  # `| head` closes the pipe on Hydra's handlers
    try:
        hydra.main(config_path=str(CONF), config_name="train", **VERSION_BASE)(job)()
        return 0
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(config.explain(error, arguments)) from error
    finally:
        sys.argv = before
        del os.environ["HYDRA_FULL_ERROR"]


def multirun(arguments: list[str]) -> int:
    """Check every job of a sweep, then run them through Hydra's sweeper and launcher."""
    jobs = expand(arguments)
    compositions = [_checked(number, job) for number, job in enumerate(jobs)]
    names = {c.config["name"] for c in compositions}
    name = names.pop() if len(names) == 1 else "multirun"
    folder = runs_root() / name / stamp()
    chosen = any(a.startswith("hydra.sweep.dir=") for a in arguments)
    _begun.clear()
    try:
        with Stop():  # between two jobs
            hand_to_hydra(["-m", *([] if chosen else [f"hydra.sweep.dir={folder}"]), *arguments])
    except Interrupted as stopped:
        left = [" ".join(job) for number, job in enumerate(jobs) if number not in _begun]
        print(f"{stopped} in job {_begun[-1] if _begun else 0} of {len(jobs)}")
        if left:
            print("did not run: " + "; ".join(left))
        raise
    return 0


def expand(arguments: list[str]) -> list[list[str]]:
    """List the jobs of a grid; a sweeper that chooses as it goes has none to list."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if any(a.startswith("hydra/sweeper=") for a in arguments):
        return []
    try:
        parsed = OverridesParser.create().parse_overrides([a for a in arguments if not a.startswith("hydra")])
        return [list(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]
    except HydraException as error:
        raise UserError(" ".join(str(error).split("\nSee ")[0].split())) from error


def _checked(number: int, job: list[str]) -> Composition:
    try:
        return compose(job)
    except UserError as error:
        raise UserError(f"job {number} ({' '.join(job)}): {error}") from error


def job(cfg: DictConfig) -> float | None:
    """Train one job of a multirun; return what a sweeper learns from it."""
    run = freeze(cfg)
    report(run, start(run))
    return result(run)


def freeze(cfg: DictConfig) -> Run:
    """Make the run of one job of a multirun, in the directory that Hydra made for it."""
    from hydra.core.hydra_config import HydraConfig

    hydra_cfg = HydraConfig.get()
    _begun.append(int(hydra_cfg.job.num))
    composition = config.checked(cfg, OmegaConf.create(hydra_cfg), list(hydra_cfg.overrides.task))
    return Run.create(composition, Path(hydra_cfg.runtime.output_dir))


def result(run: Run) -> float | None:
    """Return the value of a finished run that its best checkpoint is chosen by."""
    monitor = run.config["checkpoint"].get("monitor") or run.manifest.get("monitor")
    return run.status.get("metrics", {}).get(monitor)
