"""`leyden export RUN --weights FILE`: the weights of a checkpoint in one safetensors file, for use without leyden."""

from pathlib import Path

from leyden.commands.arguments import Arguments, check_output
from leyden.console import put
from leyden.errors import UserError
from leyden.run.find import find_checkpoint, find_run


def main(arguments: list[str]) -> int:
    """Write the weights under their names in the net. If the run averaged its weights, the averages are written."""
    parser = Arguments("export", "Write a checkpoint's weights as safetensors, under their names in the net.")
    parser.add_run()
    parser.add_argument("--weights", metavar="FILE", type=Path, required=True, help="FILE.safetensors, a new file")
    parser.add_checkpoint()
    options = parser.parse_args(arguments)
    run, path = find_run(options.run), options.weights
    find_checkpoint(run, options.checkpoint)
    check_output("--weights", path, [".safetensors"])
    if path.exists():
        raise UserError(f"--weights={path}: the file exists already, and is not overwritten")
    from leyden.checkpoints.choose import choose  # loads torch, which takes seconds
    from leyden.evaluation.export import export_weights

    checkpoint = choose(run, options.checkpoint)
    num_weights = export_weights(run, checkpoint, path)
    put(f"{num_weights:,} weights of {checkpoint.name} of {run.name}: {path}")
    return 0
