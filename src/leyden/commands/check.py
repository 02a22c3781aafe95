"""`leyden check`: compose and check a config; start nothing, import no torch."""

from leyden.commands.arguments import Arguments
from leyden.config.compose import compose
from leyden.config.composition import Composition, unused_parts
from leyden.config.defaults import describe, read_defaults
from leyden.config.locations import relative_to_cwd, replacing_files
from leyden.config.overrides import check_overrides
from leyden.console import put
from leyden.run.freeze import check_init


def main(arguments: list[str]) -> int:
    """Check the config that `leyden train` would train; with -m, all jobs of a sweep, or each value if it is large."""
    parser = Arguments("check", "Compose and check a config without training.")
    parser.add_overrides(multirun=True)
    options = parser.parse_intermixed_args(arguments)
    for composition in _check_sweep(options.overrides) if options.multirun else [compose(options.overrides)]:
        check_init(composition.config)
        unused = unused_parts(composition.raw)
        choices = [f"{k}={v}" for k, v in composition.choices.items() if v not in (None, "none") and k not in unused]
        put("  ".join(["ok", composition.config["name"], *choices]))
    for file, values in describe(read_defaults()).items():
        put(f"{file} sets {'  '.join(f'{key}={value}' for key, value in values.items())}")
    for file in replacing_files():
        put(f"{relative_to_cwd(file)} is used in place of leyden's file of the same name")
    return 0


def _check_sweep(overrides: list[str]) -> list[Composition]:
    from leyden.sweep.plan import open_plan  # loads optuna

    check_overrides(overrides)
    with open_plan(overrides) as plan:
        jobs = plan.check()
        plan.warn_of_single_job()
        plan.settings.objectives(jobs[0].config)
    return jobs
