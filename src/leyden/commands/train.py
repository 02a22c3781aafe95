"""`leyden train`: compose and check a config, create the run directory, start the run; with -m, one run per job."""

from collections import defaultdict
from pathlib import Path

from leyden.config.compose import compose
from leyden.config.locations import CONF, project_conf
from leyden.config.yaml_files import choices
from leyden.console import put
from leyden.launch import queue, slurm
from leyden.launch.hydra import multirun, print_config
from leyden.launch.start import run_before_restart, start
from leyden.run.freeze import freeze
from leyden.run.summary import print_results


def main(arguments: list[str]) -> int:
    """Train one run or the jobs of a sweep, or print what a flag of Hydra such as --cfg asks for."""
    if "-h" in arguments or "--help" in arguments:
        put(usage())
        return 0
    arguments = [a for a in arguments if a not in ("--run", "-r")]
    flags = [a for a in arguments if a.startswith("-")]
    if not flags:
        composition = compose(arguments)
        if slurm.is_requested(composition):
            return queue.submit_new(composition)
        folder = composition.run_dir
        path = Path(folder) if folder else slurm.run_path(composition.config["name"], arguments)
        requeued_path = path if slurm.is_restarted() and path and (path / "config.yaml").exists() else None
        if earlier_run := run_before_restart() or requeued_path:
            from leyden.commands import resume

            return resume.main([str(earlier_run)])
        run = freeze(composition, path)
        print_results(run, start(run).results)
        return 0
    if set(flags) <= {"-m", "--multirun"}:
        return multirun([a for a in arguments if a not in flags])
    return print_config(arguments)


def usage() -> str:
    """Return the usage of `leyden train`, and the choices of each group."""
    groups = defaultdict(set)
    for folder in filter(None, (CONF, project_conf())):
        for group in filter(Path.is_dir, folder.iterdir()):
            groups[group.name] |= {file.stem for file in choices(group)}
    lines = "\n".join(f"  {group:12} {', '.join(sorted(names))}" for group, names in sorted(groups.items()) if names)
    return (
        "usage: leyden train [GROUP=CHOICE …] [KEY=VALUE …] [-m] [--cfg job] [--info defaults-tree]\n\n"
        f"{lines}\n\n"
        "KEY is any key of the config (leyden train --cfg job shows it), or an argument of a class that the config "
        "names,\nsuch as trainer.max_steps; +KEY adds any other; ~KEY removes one.\n"
        "-m trains every combination of values written with commas: leyden train -m seed=0,1,2"
    )
