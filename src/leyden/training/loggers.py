"""The loggers of a run: each gets what its constructor takes of the run's folder, its config and its sweep."""

from typing import Any

from lightning.pytorch.loggers import Logger

from leyden.config import signatures
from leyden.config.instantiate import instantiate
from leyden.config.output_paths import with_paths_in
from leyden.distributed import ranks
from leyden.loggers.record import Record
from leyden.run.directory import Run


def build_loggers(run: Run, config: dict[str, Any]) -> list[Logger]:
    """Build the loggers that a config names, and the local record.

    The record comes last, so that a module's `self.logger` is one that the user chose.
    """
    nodes = {name: node for name, node in (config["logger"] or {}).items() if node}
    place_in_sweep = run.manifest.get("sweep") if nodes and ranks.rank() == 0 else None  # rank 0 alone logs
    facts = {"run_dir": run.path, "config": config, "sweep": place_in_sweep}
    loggers = [_build(f"logger.{name}", node, run, facts) for name, node in nodes.items()]
    return [*loggers, Record(run.path)]


def _build(path: str, node: dict[str, Any], run: Run, facts: dict[str, Any]) -> Logger:
    """Build one logger; where it takes a folder to write to, and the config names none, this is the run's."""
    target = node["_target_"]
    signature = signatures.signature(target)
    if signature is None:  # its source does not say what it takes
        return instantiate(with_paths_in(node, run.path), path, **facts)
    folder = str(run.path)
    # what Lightning's loggers call the folder that they write to; CometLogger takes it among its **kwargs
    folders = {"save_dir": folder, "root_dir": folder}
    supplied = {name: value for name, value in {**folders, **facts}.items() if name in signature.parameters}
    if target.startswith("lightning.") and target.endswith(".CometLogger"):
        supplied["offline_directory"] = folder
    placed_node = with_paths_in(node, run.path)
    return instantiate(placed_node, path, **{name: v for name, v in supplied.items() if name not in placed_node})
