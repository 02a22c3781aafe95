"""`leyden rerun RUN [--from best|last] [overrides]`: a new run from the frozen config of an old one."""

from leyden.commands.arguments import Arguments
from leyden.config.compose import override
from leyden.launch import queue, slurm
from leyden.launch.start import start
from leyden.run.find import find_run
from leyden.run.freeze import freeze
from leyden.run.summary import print_results


def main(arguments: list[str]) -> int:
    """Train again, with overrides of the unresolved config: `seed=1` changes every value that refers to the seed.

    `--from best` sets `init` to a checkpoint of the old run.
    """
    parser = Arguments("rerun", "Train again from a run's frozen config: leyden rerun last seed=1")
    parser.add_run()
    parser.add_overrides()
    parser.add_argument(
        "--from",
        dest="checkpoint",
        metavar="best|last|step-N",
        help="start from the weights of this checkpoint of the run, not from new ones",
    )
    options = parser.parse_intermixed_args(arguments)
    parent_run = find_run(options.run)
    raw = dict(parent_run.manifest.get("raw") or parent_run.config)
    if options.checkpoint:
        raw["init"] = {"weights": str(parent_run.path), "checkpoint": options.checkpoint}
    composition = override(raw, options.overrides)
    composition.choices = parent_run.manifest.get("choices", {})
    parent = {"rerun": str(parent_run.path)}
    if slurm.is_requested(composition):
        return queue.submit_new(composition, parent)
    run = freeze(composition, parent=parent)
    print_results(run, start(run).results)
    return 0
