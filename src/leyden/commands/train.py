"""`leyden train`: compose, check, make the run directory, start it; with -m, one run per job."""

from pathlib import Path

from leyden.config.compose import compose
from leyden.config.groups import choices
from leyden.config.locations import CONF, project_conf
from leyden.console import put
from leyden.launch import queue, slurm
from leyden.launch.hydra import multirun, print_config
from leyden.launch.start import start
from leyden.launch.torchrun import run_before_restart
from leyden.run.directory import Run
from leyden.run.summary import print_results


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
            return queue.submit_new(composition)
        path = (
            Path(composition.run_dir) if composition.run_dir else slurm.run_path(composition.config["name"], arguments)
        )
        requeued = path if slurm.restarted() and path and (path / "config.yaml").exists() else None
        if earlier := run_before_restart() or requeued:
            from leyden.commands import resume

            return resume.main([str(earlier)])
        run = Run.create(composition, path)
        print_results(run, start(run).results)
        return 0
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
