"""`leyden resume RUN`: go on from the last whole checkpoint, with nothing but the directory."""

from leyden.check import Composition, check
from leyden.errors import UserError
from leyden.launch import start
from leyden.run import Run


def main(arguments: list[str]) -> int:
    """Resume one run; a finished one has nothing left to do."""
    from leyden.commands.train import report

    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("leyden resume takes one run: a path, last, or a part of a name; rerun takes overrides")
    run = Run.find(arguments[0])
    if run.status.get("state") == "finished":
        print(f"{run.name} is finished: nothing left to do")
        return 0
    frozen = run.config
    check(Composition(frozen, frozen))
    return report(run, start(run))
