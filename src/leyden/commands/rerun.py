"""`leyden rerun RUN [overrides]`: a new run from the frozen config of an old one."""

from leyden.config.compose import override
from leyden.errors import UserError
from leyden.launch import queue, slurm
from leyden.launch.start import start
from leyden.run.find import find_run
from leyden.run.freeze import freeze
from leyden.run.summary import print_results


def main(arguments: list[str]) -> int:
    """Train again, with overrides of the unresolved config: `seed=1` changes every value that refers to the seed."""
    if not arguments or arguments[0].startswith("-"):
        raise UserError("leyden rerun takes a run and overrides: leyden rerun last seed=1")
    parent_run = find_run(arguments[0])
    composition = override(parent_run.manifest.get("raw") or parent_run.config, arguments[1:])
    composition.choices = parent_run.manifest.get("choices", {})
    parent = {"rerun": str(parent_run.path)}
    if slurm.is_requested(composition):
        return queue.submit_new(composition, parent)
    run = freeze(composition, parent=parent)
    print_results(run, start(run).results)
    return 0
