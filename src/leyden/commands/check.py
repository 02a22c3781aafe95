"""`leyden check`: compose and check a config; start nothing, import no torch."""

from leyden.config.compose import compose
from leyden.config.composition import Composition
from leyden.console import complain, put


def main(arguments: list[str]) -> int:
    """Check what `leyden train` with the same arguments would train; with -m, every job, or every value once."""
    overrides = [a for a in arguments if a not in ("-m", "--multirun")]
    if unknown := [a for a in overrides if a.startswith("-")]:
        complain(f"leyden check takes overrides and -m, not {unknown[0]}")
        return 2
    for composition in _sweep(overrides) if len(overrides) < len(arguments) else [compose(overrides)]:
        choices = "  ".join(f"{k}={v}" for k, v in composition.choices.items() if v not in (None, "none"))
        put(f"ok  {composition.config['name']}  {choices}")
    return 0


def _sweep(overrides: list[str]) -> list[Composition]:
    from leyden.sweep.plan import planned  # with optuna

    with planned(overrides) as plan:
        jobs = plan.check()
        plan.settings.objectives(jobs[0].config)
    return jobs
