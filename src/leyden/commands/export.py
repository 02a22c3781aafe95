"""`leyden export RUN --weights FILE`: the weights of a checkpoint in one safetensors file, for use without leyden."""

import hashlib
from pathlib import Path

from leyden.commands.arguments import Arguments
from leyden.console import put
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.run.find import find_run

# where a model keeps the net that is to be used: the average of one, else the one that learns; else all there is
PREFIXES = ("average.net.", "net.", "")


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
        wrong = "is there already, and stays as it is" if target.exists() else f"there is no folder {target.parent}"
        raise UserError(f"--weights={target}: {wrong}")
    from leyden import checkpoints
    from leyden.evaluation import load  # seconds, with torch

    checkpoint = load.choose_checkpoint(run, options.checkpoint)
    weights = checkpoints.load(checkpoint)["state_dict"]
    prefix = next(p for p in PREFIXES if any(name.startswith(p) for name in weights))
    metadata = {
        "format": "pt",
        "run": run.name,
        "step": str(int(checkpoint.stem.removeprefix("step-"))),
        "part": prefix.rstrip("."),
        "config": hashlib.sha256((run.path / "config.yaml").read_bytes()).hexdigest(),  # as sha256sum has it
    }
    from safetensors.torch import save

    # a clone each: safetensors takes no two names for one tensor
    tensors = {
        name.removeprefix(prefix): tensor.clone().contiguous()
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    write_atomically(target, save(tensors, metadata))
    count = sum(tensor.numel() for tensor in tensors.values())
    put(f"{count:,} numbers of {checkpoint.name} of {run.name}: {target}")
    return 0
