"""`leyden submit RUN|SWEEP…`: put what was stopped, or never began, into SLURM's queue; and the same for new runs."""

import json
import shlex
from collections import defaultdict
from pathlib import Path

from leyden.commands.wait import ends
from leyden.config.compose import launcher
from leyden.config.composition import Composition
from leyden.config.locations import relative_to_cwd
from leyden.console import put
from leyden.errors import UserError
from leyden.launch import slurm
from leyden.run.directory import Run
from leyden.run.find import find_runs
from leyden.signals import Interrupted

PREFIX = "hydra.launcher."


def main(arguments: list[str]) -> int:
    """Submit again, as before but for the options given; what is finished, or in the queue, stays as it is."""
    given = [a for a in arguments if a.lstrip("+").startswith(PREFIX)]
    names = [a for a in arguments if a not in given]
    if not names or names[0].startswith("-"):
        raise UserError(
            "leyden submit takes runs or sweeps, and options: leyden submit last hydra.launcher.time=4:00:00"
        )
    runs = find_runs(names)
    jobs = slurm.queue(runs)
    folders = defaultdict(list)
    for run in runs:
        state, _ = slurm.seen(run, jobs)
        if state in ("finished", "pruned", "queued", "starting", "running"):
            put(f"{run.name} is {state}")
        else:
            folders[run.path.parent if run.sweep else run.path].append(run)
    for folder, members in folders.items():
        options = slurm.Options.of(_options(members[0], given))
        slurm.check(options, [run.config for run in members])
        report(slurm.submit(members, folder, options, slurm.keep_code(folder, options)), folder, len(members))
    return 0


def _options(run: Run, given: list[str]) -> dict:
    """What the run was submitted with, or the defaults, and on top of it what is given."""
    fresh = launcher(["hydra/launcher=slurm", *given])
    keys = {item.lstrip("+").removeprefix(PREFIX).partition("=")[0].partition(".")[0] for item in given}
    before = slurm.options_of(run)
    for key in slurm.SHELL:  # which the folder of a run cannot order: it may be somebody else's
        if key not in keys and before.get(key) and before[key] != fresh[key]:
            again = shlex.quote(f"{PREFIX}{key}={_written(before[key])}")
            raise UserError(
                f"{run.name} was submitted with {PREFIX}{key}, which is not taken from a run's folder: if it is yours, "
                f"write it once more, {again}, or into conf/hydra/launcher/slurm.yaml"
            )
    return {**fresh, **before, **{key: fresh[key] for key in (*keys, *slurm.SHELL)}}


def _written(value: list[str] | dict) -> str:
    """Write a value as in an override, where the keys of a dict have no quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {json.dumps(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


def new(composition: Composition, parent: dict | None = None) -> int:
    """Make a run and put it into the queue; wait for its end if that is asked for."""
    options = slurm.Options.of(composition.launcher)
    slurm.check(options, [composition.config])
    run = Run.create(composition, Path(composition.run_dir) if composition.run_dir else None, parent)
    try:
        jobs = slurm.submit([run], run.path, options, slurm.keep_code(run.path, options))
    except UserError:
        run.discard()
        raise
    report(jobs, run.path, 1)
    if options.wait:
        return 1 if isinstance(results([run])[run.path], Exception) else 0
    return 0


def report(jobs: list[str], folder: Path, count: int) -> None:
    """Say what was submitted, and what can be done with it."""
    path = shlex.quote(str(relative_to_cwd(folder)))
    what = f"{count} runs in the queue" if count > 1 else "in the queue"
    put(f"{what} as job {', '.join(jobs)}: leyden wait {path}; leyden cancel {path}")


def results(runs: list[Run]) -> dict[Path, float | RuntimeError | None]:
    """Wait for runs to end; return what a sweeper learns from each, or the error that it ended with."""
    from leyden.commands.train import result

    found: dict[Path, float | RuntimeError | None] = {}
    try:
        for run, state, reason in ends(runs):
            text = f"{run.name}: {state}" + (f": {reason}" if reason else "")
            put(text)
            found[run.path] = result(run) if state == "finished" else RuntimeError(text)
    except (KeyboardInterrupt, Interrupted):
        print("no longer waiting; the jobs stay in the queue", flush=True)
        raise
    return found
