"""Make a feature network's file (weights, config, origin) from the best checkpoint of a classifier's run.

scripts/make_feature.py RUN conf/feature/NAME.ckpt
"""

import sys
from pathlib import Path

import torch

from leyden import checkpoints
from leyden.checkpoints.choose import choose
from leyden.run.find import find_run


def main(name: str, out: Path) -> None:
    """Write the feature network's file."""
    run = find_run(name)
    path = choose(run)
    checkpoint = checkpoints.load(path)
    manifest, metrics = run.manifest, run.status["metrics"]
    origin = {
        "run": run.name,
        "checkpoint": path.name,
        "command": manifest["command"],
        "commit": (manifest["git"] or {}).get("commit"),
        "torch": manifest["packages"]["torch"],
        "data": manifest["data"],
        "metrics": {name: value for name, value in metrics.items() if name.startswith(("val/", "test/"))},
    }
    weights = {name: value.clone() for name, value in checkpoint["state_dict"].items() if name.startswith("net.")}
    torch.save({"state_dict": weights, "leyden": {**checkpoint["leyden"], "origin": origin}}, out)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
