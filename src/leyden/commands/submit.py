"""`leyden submit RUN|SWEEP…`: put what was stopped, or never began, into SLURM's queue."""

import json
import shlex
from collections import defaultdict

from leyden.config.compose import launcher
from leyden.console import put
from leyden.errors import UserError
from leyden.launch import queue, slurm, slurm_script
from leyden.run.directory import Run
from leyden.run.find import find_runs

PREFIX = "hydra.launcher."


def main(arguments: list[str]) -> int:
    """Submit again, as before but for the options given; what is finished, or in the queue, stays as it is."""
    options_typed = [a for a in arguments if a.lstrip("+").startswith(PREFIX)]
    names = [a for a in arguments if a not in options_typed]
    if not names or names[0].startswith("-"):
        raise UserError(
            "leyden submit takes runs or sweeps, and options: leyden submit last hydra.launcher.time=4:00:00"
        )
    runs = find_runs(names)
    jobs = slurm.queue(runs)
    folders = defaultdict(list)
    for run in runs:
        state, _ = slurm.state_and_reason(run, jobs)
        if state in ("finished", "pruned", "queued", "starting", "running"):
            put(f"{run.name} is {state}")
        else:
            folders[run.path.parent if run.sweep else run.path].append(run)
    for folder, members in folders.items():
        options = slurm_script.Options.of(_options(members[0], options_typed))
        slurm.check(options, [run.config for run in members])
        queue.announce(slurm.submit(members, folder, options, slurm.copy_code(folder, options)), folder, len(members))
    return 0


def _options(run: Run, typed: list[str]) -> dict:
    """What the run was submitted with, or the defaults, and on top of it what is given."""
    fresh = launcher(["hydra/launcher=slurm", *typed])
    keys = {item.lstrip("+").removeprefix(PREFIX).partition("=")[0].partition(".")[0] for item in typed}
    earlier_options = slurm.options_of(run)
    for key in slurm_script.SHELL:  # which the folder of a run cannot order: it may be somebody else's
        if key not in keys and earlier_options.get(key) and earlier_options[key] != fresh[key]:
            override = shlex.quote(f"{PREFIX}{key}={_written(earlier_options[key])}")
            raise UserError(
                f"{run.name} was submitted with {PREFIX}{key}, which is not taken from a run's folder: if it is yours, "
                f"write it once more, {override}, or into conf/hydra/launcher/slurm.yaml"
            )
    return {**fresh, **earlier_options, **{key: fresh[key] for key in (*keys, *slurm_script.SHELL)}}


def _written(value: list[str] | dict) -> str:
    """Write a value as in an override, where the keys of a dict have no quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {json.dumps(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)
