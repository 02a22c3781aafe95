"""`leyden export RUN --weights FILE`: the weights of a checkpoint in one safetensors file, for use without leyden."""

from pathlib import Path

from leyden.commands.arguments import Arguments
from leyden.console import put
from leyden.errors import UserError
from leyden.run.find import find_run


def main(arguments: list[str]) -> int:
    """Write the weights, averaged ones if weights were averaged, under the names that they have in the net."""
    parser = Arguments("export", "Write a checkpoint's weights as safetensors, under the names they have in the net.")
    parser.add_argument("run", metavar="RUN", help="a path, last, or a unique part of a run's name")
    parser.add_argument("--weights", metavar="FILE", type=Path, required=True, help="FILE.safetensors, a new file")
    parser.add_argument("--checkpoint", metavar="best|last|step-N", help="by default the best, else the last")
    options = parser.parse_args(arguments)
    run, target = find_run(options.run), options.weights
    if target.suffix != ".safetensors":
        raise UserError(f"--weights={target}: the file is safetensors, so it should be called {target}.safetensors")
    if target.exists() or not target.parent.is_dir():
        problem = "is there already, and stays as it is" if target.exists() else f"there is no folder {target.parent}"
        raise UserError(f"--weights={target}: {problem}")
    from leyden.checkpoints.choose import choose  # seconds, with torch
    from leyden.evaluation.export import export_weights

    checkpoint = choose(run, options.checkpoint)
    count = export_weights(run, checkpoint, target)
    put(f"{count:,} numbers of {checkpoint.name} of {run.name}: {target}")
    return 0
