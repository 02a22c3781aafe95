"""`leyden submit RUN|SWEEP…`: submit stopped runs, and runs that have not started, to SLURM."""

import json
import shlex
from collections import defaultdict

from leyden.commands.arguments import Arguments
from leyden.config.compose import launcher
from leyden.console import put
from leyden.errors import UserError
from leyden.launch import queue, slurm, slurm_script
from leyden.run.directory import Run
from leyden.run.find import find_runs

LAUNCHER_PREFIX = "hydra.launcher."


def main(arguments: list[str]) -> int:
    """Submit runs with their earlier options and those that the user typed; skip finished and queued runs."""
    parser = Arguments("submit", "Submit stopped runs to SLURM: leyden submit last hydra.launcher.time=4:00:00")
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar=f"RUN|SWEEP|{LAUNCHER_PREFIX}KEY=VALUE",
        help="runs, or sweeps, which stand for all their runs; options for SLURM, by default the earlier ones",
    )
    arguments = parser.parse_args(arguments).arguments
    typed_options = [a for a in arguments if a.lstrip("+").startswith(LAUNCHER_PREFIX)]
    names = [a for a in arguments if a not in typed_options]
    if not names:
        parser.error("name a run or a sweep")
    runs = find_runs(names)
    jobs = slurm.queue(runs)
    runs_by_folder = defaultdict(list)
    for run in runs:
        state, _ = slurm.state_and_reason(run, jobs)
        if state in ("finished", "pruned", "queued", "starting", "running"):
            put(f"{run.name} is {state}")
        else:
            runs_by_folder[run.path.parent if run.sweep else run.path].append(run)
    for folder, members in runs_by_folder.items():
        options = slurm_script.Options.from_config(_launcher_options(members[0], typed_options))
        slurm.check(options, [run.config for run in members])
        queue.announce(slurm.submit(members, folder, options, slurm.copy_code(folder, options)), folder, len(members))
    return 0


def _launcher_options(run: Run, typed_options: list[str]) -> dict:
    """Return the launcher's options: those that the user typed, else those of the earlier submission.

    Options that neither sets have their defaults.
    """
    options = launcher(["hydra/launcher=slurm", *typed_options])
    keys = {
        item.lstrip("+").removeprefix(LAUNCHER_PREFIX).partition("=")[0].partition(".")[0] for item in typed_options
    }
    earlier_options = slurm.options_of(run)
    for key in slurm_script.SHELL:  # commands are not taken from a run's folder, which may be somebody else's
        if key not in keys and earlier_options.get(key) and earlier_options[key] != options[key]:
            override = shlex.quote(f"{LAUNCHER_PREFIX}{key}={_override_value(earlier_options[key])}")
            raise UserError(
                f"{run.name} was submitted with {LAUNCHER_PREFIX}{key}, which is not taken from a run's folder: if it "
                f"is yours, repeat it, {override}, or write it into conf/hydra/launcher/slurm.yaml"
            )
    return {**options, **earlier_options, **{key: options[key] for key in (*keys, *slurm_script.SHELL)}}


def _override_value(value: list[str] | dict) -> str:
    """Format a value as in an override, in which the keys of a dict have no quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {json.dumps(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
