"""The Python API behind `leyden export`: write the weights of a checkpoint as safetensors, for use without leyden."""

import hashlib
from pathlib import Path

from safetensors.torch import save

from leyden import checkpoints
from leyden.files import write_atomically
from leyden.run.directory import Run, step_of

# prefixes of the averaged net, the trained net and the whole model; the first that a checkpoint has is exported
PREFIXES = ("average.net.", "net.", "")


def export_weights(run: Run, checkpoint: Path, target: Path) -> int:
    """Write the net's weights (the averages, if the model has them) under their names in the net; return their number.

    The file's metadata hold the run, the step, the part of the model, and the sha256 of config.yaml.
    """
    weights = checkpoints.load(checkpoint)["state_dict"]
    prefix = next(p for p in PREFIXES if any(name.startswith(p) for name in weights))
    metadata = {
        "format": "pt",
        "run": run.name,
        "step": str(step_of(checkpoint)),
        "part": prefix.rstrip("."),
        "config": hashlib.sha256((run.path / "config.yaml").read_bytes()).hexdigest(),  # as sha256sum prints it
    }
    # safetensors refuses two names for one tensor, so each tensor is cloned
    tensors = {
        name.removeprefix(prefix): tensor.clone().contiguous()
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    write_atomically(target, save(tensors, metadata))
    return sum(tensor.numel() for tensor in tensors.values())
