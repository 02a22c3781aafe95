"""Convert the nodes of a config that differ between the template and leyden: trainer, callbacks and loggers."""

from collections.abc import Iterable
from typing import Any

import yaml

from leyden.adoption.report import Report
from leyden.config.check import SUPPLIED_ARGUMENTS
from leyden.config.output_paths import PATH_KEYS

HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "precision", "sync_batchnorm", "benchmark")
SET_BY_LEYDEN = {"_target_", "barebones", "enable_model_summary", *SUPPLIED_ARGUMENTS["trainer"]}
PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
STRATEGIES = {"ddp_spawn": "ddp", "ddp_notebook": "ddp", "ddp_fork": "ddp", "dp": "ddp"}
CHECKPOINT_KEYS = {"monitor": "monitor", "mode": "mode", "every_n_train_steps": "every_n_steps"}
# Classes of Lightning's loggers: those that leyden replaces by a logger of its own, and those that it uses unchanged.
LEYDEN_LOGGERS = {"WandbLogger": "wandb", "TensorBoardLogger": "tensorboard"}
STOCK_LOGGERS = ("CSVLogger", "CometLogger", "MLFlowLogger")
WANDB_KEYS = ("project", "entity", "group", "job_type", "tags", "notes")
SECRETS = ("api_key", "rest_api_key")


def dump(content: dict[str, Any], header: Iterable[str] = ()) -> str:
    """Return a config file: comments, then the content."""
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120) if content else ""
    return "".join(f"# {line}\n" for line in header) + body


def class_name(node: Any) -> str:
    """Return the name of the class that a node builds, or "" if it names none."""
    target = node.get("_target_") if isinstance(node, dict) else None
    return target.rpartition(".")[2] if isinstance(target, str) else ""


def split_trainer(node: dict[str, Any], place: str, report: Report) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a trainer's keys for the hardware, with `precision`, and the others, without those that leyden sets."""
    hardware, others = {}, {}
    for key, value in node.items():
        if key == "accumulate_grad_batches" and value not in (None, 1):
            report.manual_steps.append(
                f"{place}: accumulate_grad_batches={value}: leyden's accumulate=N splits each batch into N parts; "
                f"multiply data.batch_size by {value} and set accumulate: {value}"
            )
        elif key in HARDWARE:
            hardware[key] = value
        elif key not in SET_BY_LEYDEN and key != "accumulate_grad_batches":
            others[key] = value
    if hardware.get("devices") == -1:
        hardware["devices"] = "auto"
    if isinstance(strategy := hardware.get("strategy"), str):
        hardware["strategy"] = STRATEGIES.get(strategy, strategy.replace("ddp_spawn_", "ddp_"))
    if "precision" in hardware:
        hardware["precision"] = PRECISIONS.get(str(hardware["precision"]), hardware["precision"])
    return hardware, others


def checkpoint_settings(node: dict[str, Any], full_node: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of `checkpoint` for a ModelCheckpoint; `full_node` also holds what its bases set."""
    settings = {name: node[key] for key, name in CHECKPOINT_KEYS.items() if node.get(key) is not None}
    settings.pop("mode", None)
    if isinstance(node.get("monitor") or node.get("mode"), str) and full_node.get("monitor"):
        settings |= {"monitor": full_node["monitor"], "mode": full_node.get("mode") or "min"}
    return settings


def split_callbacks(
    nodes: dict[str, Any], full_nodes: dict[str, Any], place: str, report: Report
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the callbacks that leyden trains with, and the keys of `checkpoint`; both may be empty.

    `full_nodes` are the same callbacks merged with their bases, which may be the only ones to name the classes.
    """
    callbacks: dict[str, Any] = {}
    checkpoint: dict[str, Any] = {}
    for name, node in nodes.items():
        full_node = full_nodes[name] if isinstance(full_nodes.get(name), dict) else node
        kind = class_name(full_node) or class_name(node)
        if kind == "ModelCheckpoint" and isinstance(node, dict):
            settings = checkpoint_settings(node, full_node)
            checkpoint = settings | checkpoint
            text = "  ".join(f"checkpoint.{key}={value}" for key, value in settings.items())
            report.translations.append(
                f"{place}: {name} (ModelCheckpoint) → {text or 'the checkpoints that every run has'}"
            )
        elif kind.endswith("ProgressBar"):
            report.omissions.append(f"{place}: {name} ({kind}): leyden prints its own progress")
        elif isinstance(node, dict) and not kind:
            report.omissions.append(f"{place}: {name} names no class, so nothing was built of it")
        elif isinstance(node, dict):
            callbacks[name] = _without_paths(node) if _is_lightning(full_node) else node
        else:
            callbacks[name] = node
    return callbacks, checkpoint


def convert_logger(name: str, node: Any, full_node: Any, place: str, report: Report) -> tuple[str, Any] | None:
    """Return a logger's name and node for leyden, or None if leyden has no such logger."""
    kind = class_name(full_node) or class_name(node)
    if not isinstance(node, dict):
        return None
    if kind in LEYDEN_LOGGERS:
        new_name = LEYDEN_LOGGERS[kind]
        return new_name, _wandb_settings(node) if new_name == "wandb" else {}
    if kind in STOCK_LOGGERS:
        return name, {key: value for key, value in _without_paths(node).items() if key not in SECRETS}
    if kind:
        report.manual_steps.append(
            f"{place}: {name} ({kind}) is left out: leyden trains with W&B, TensorBoard, Lightning's CSV, MLflow and "
            "Comet loggers, and your own; every run has its values in metrics.jsonl"
        )
    return None


def _wandb_settings(node: dict[str, Any]) -> dict[str, Any]:
    settings = {key: node[key] for key in WANDB_KEYS if node.get(key)}
    if node.get("offline"):
        settings["mode"] = "offline"
    if node.get("log_model"):
        settings["log_checkpoints"] = True
    return settings


def _is_lightning(node: Any) -> bool:
    return str(node.get("_target_", "")).startswith("lightning.") if isinstance(node, dict) else False


def _without_paths(node: dict[str, Any]) -> dict[str, Any]:
    """Return the node of a Lightning class without output paths, since leyden passes the run's folder."""
    return {key: value for key, value in node.items() if not PATH_KEYS.search(key) or key == "log_model"}
