"""`leyden check`: compose and check a config; start nothing, import no torch."""

from leyden import config
from leyden.console import complain


def main(arguments: list[str]) -> int:
    """Check what `leyden train` with the same arguments would train; with -m, every job."""
    from leyden.commands.train import expand

    overrides = [a for a in arguments if a not in ("-m", "--multirun")]
    if unknown := [a for a in overrides if a.startswith("-")]:
        complain(f"leyden check takes overrides and -m, not {unknown[0]}")
        return 2
    jobs = expand(overrides) if len(overrides) < len(arguments) else [overrides]
    for job in jobs:
        composition = config.compose(job)
        choices = "  ".join(f"{k}={v}" for k, v in composition.choices.items() if v not in (None, "none"))
        print(f"ok  {composition.config['name']}  {choices}")
    return 0
