"""Build the objects of a config: the model, the data, the trainer with its callbacks and loggers."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from leyden import checkpoints
from leyden.callbacks.checkpoint import Checkpoint
from leyden.callbacks.heartbeat import Heartbeat
from leyden.callbacks.metering import Metering
from leyden.callbacks.profile import Profile
from leyden.callbacks.progress import Progress
from leyden.callbacks.throughput import Throughput
from leyden.config import signatures
from leyden.config.check import expectations
from leyden.config.foreign import REFUSED_CALLBACKS, missing_loaders
from leyden.config.instantiate import instantiate
from leyden.config.output_paths import with_paths_in
from leyden.config.run_config import RunConfig
from leyden.console import say
from leyden.distributed import ranks
from leyden.distributed.batchnorm import SyncBatchNorm
from leyden.distributed.signals import Stop
from leyden.distributed.world import cores
from leyden.errors import UserError
from leyden.loggers.record import Record
from leyden.models.model import Model
from leyden.run.directory import Run
from leyden.training import loop, strategies
from leyden.training.seeding import seed_everything

for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class _SummaryLog(logging.Handler):
    """Shows the table of Lightning's ModelSummary, and writes it to the run's log."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage().strip("\n"))


_summary_log = logging.getLogger("lightning.pytorch.callbacks.model_summary")
_summary_log.setLevel(logging.INFO)
_summary_log.propagate = False
_summary_log.addHandler(_SummaryLog())


@dataclass
class Parts:
    """The objects that a config describes."""

    model: LightningModule
    data: LightningDataModule | None  # None if the loaders are the model's
    trainer: Trainer
    loggers: list[Logger]
    checkpoint: Checkpoint
    pruning: list[Any]  # callbacks that may stop the run early, and then set `pruned`


def build(run: Run, config: RunConfig, stop: Stop) -> Parts:
    """Build everything that a config describes."""
    model, data = build_learner(config)
    loggers = build_loggers(run, config)
    throughput = Throughput()
    # The manifest may name more callbacks: a sweep adds the one that prunes its jobs.
    nodes = with_paths_in(run.manifest.get("callbacks") or {}, run.path)
    pruning = [instantiate(node, f"callbacks.{name}", run_dir=run.path) for name, node in nodes.items()]
    expected_metrics = [("expect.metric", expectation["metric"]) for expectation in expectations(config)]
    expected_metrics += [pair for callback in pruning for pair in callback.expected]
    metering = Metering(expected_metrics, throughput)
    checkpoint = instantiate(config["checkpoint"], "checkpoint", run_dir=run.path, config=config, stop=stop)
    user_callbacks = build_callbacks(config, run.path)
    user_callbacks += [Profile(run.path)] if config["profile"] else []
    trainer = build_trainer(
        {"num_sanity_val_steps": 1, "enable_model_summary": False, **config["trainer"]},
        model,
        logger=loggers,
        callbacks=[
            throughput,
            metering,
            *user_callbacks,
            *pruning,
            Heartbeat(run),
            Progress(metering),
            checkpoint,
        ],
        default_root_dir=run.path,
    )
    # Lightning would convert the model after loading a checkpoint, which would round float64 weights to float32.
    trainer.precision_plugin.convert_module(model)
    loop.install(trainer, config["seed"], config["accumulate"])
    for logger in loggers:
        if isinstance(logger, Record):
            logger.trainer = trainer
    return Parts(model, data, trainer, loggers, checkpoint, pruning)


def build_callbacks(config: RunConfig, folder: Path) -> list[Callback]:
    """Build the callbacks that a config names; they write below `folder`.

    Raises:
        UserError: if one of them is a progress bar.
    """
    callbacks = []
    for name, node in (config["callbacks"] or {}).items():
        if not node:
            continue
        callback = instantiate(with_paths_in(node, folder), f"callbacks.{name}")
        if isinstance(callback, ProgressBar):
            raise UserError(f"callbacks.{name}: {REFUSED_CALLBACKS['ProgressBar']}")
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / "checkpoints" / name)
        callbacks.append(callback)
    return callbacks


def build_loggers(run: Run, config: RunConfig) -> list[Logger]:
    """Build the loggers that a config names, and the local record.

    The record comes last, so that a module's `self.logger` is one that the user chose.
    """
    nodes = {name: node for name, node in (config["logger"] or {}).items() if node}
    position_in_sweep = run.manifest.get("sweep") if nodes and ranks.rank() == 0 else None  # only rank 0 logs
    facts = {"run_dir": run.path, "config": config, "sweep": position_in_sweep}
    loggers = [_build_logger(f"logger.{name}", node, run, facts) for name, node in nodes.items()]
    return [*loggers, Record(run.path)]


def _build_logger(path: str, node: dict[str, Any], run: Run, facts: dict[str, Any]) -> Logger:
    """Build one logger, and pass it those of `facts` that its constructor takes.

    If it takes a folder to write to and the config names none, it gets the run's folder.
    """
    target = node["_target_"]
    signature = signatures.signature(target)
    if signature is None:  # the source does not show its arguments
        return instantiate(with_paths_in(node, run.path), path, **facts)
    folder = str(run.path)
    # Lightning's loggers take their output folder under one of these names; CometLogger takes it in its **kwargs
    folders = {"save_dir": folder, "root_dir": folder}
    arguments = {name: value for name, value in {**folders, **facts}.items() if name in signature.parameters}
    if target.startswith("lightning.") and target.endswith(".CometLogger"):
        arguments["offline_directory"] = folder
    placed_node = with_paths_in(node, run.path)
    return instantiate(placed_node, path, **{name: v for name, v in arguments.items() if name not in placed_node})


def build_learner(config: RunConfig) -> tuple[LightningModule, LightningDataModule | None]:
    """Build a model and data to train, check that the config suits them, and compile the model if requested."""
    model, data = build_model(config)
    if isinstance(model, Model):
        model.check_optimizer()
    _check_clipping(model, config)
    _check_accumulate(model, data, config["accumulate"])
    if data is not None and is_overridden("train_dataloader", model):
        names = type(data).__name__, type(model).__name__
        say(f"the batches are those of {names[0]}; data=none takes them from {names[1]}, which has loaders of its own")
    if config["compile"]:
        _compile(model)
    return model, data


def _check_clipping(model: LightningModule, config: RunConfig) -> None:
    """Refuse clipping by the trainer for a model that steps its optimizers itself."""
    value = config["trainer"].get("gradient_clip_val")
    if value and not model.automatic_optimization:
        hint = f": set model.gradient_clip_val={value}" if hasattr(model, "gradient_clip_val") else ""
        raise UserError(
            f"trainer.gradient_clip_val={value} has no effect on a model that steps its optimizers itself{hint}"
        )


def _check_accumulate(model: LightningModule, data: LightningDataModule | None, accumulate: int) -> None:
    """Refuse microbatches for a model or data that cannot take them."""
    if accumulate == 1:
        return
    if not model.automatic_optimization and getattr(model, "accumulate", None) != accumulate:
        hint = ": write model.accumulate=${accumulate}" if hasattr(model, "accumulate") else ""
        raise UserError(f"accumulate={accumulate} has no effect on a model that steps its optimizers itself{hint}")
    if getattr(data, "carry", False):
        raise UserError(
            f"accumulate={accumulate}: rows that carry a state on to the next batch cannot be split; set "
            "data.carry=false, or lower data.batch_size or data.window"
        )


def _compile(model: LightningModule) -> None:
    """Compile the model's net or nets."""
    nets = getattr(model, "net", None)
    if not isinstance(nets, torch.nn.Module):
        raise UserError(f"compile=true: {type(model).__name__} has no net to compile")
    for net in nets.values() if isinstance(nets, torch.nn.ModuleDict) else [nets]:
        net.compile()


def build_trainer(node: dict[str, Any], model: LightningModule, **arguments: Any) -> Trainer:
    """Build the trainer of a config for the existing ranks; it writes only below `default_root_dir`."""
    node = with_paths_in(node, Path(arguments["default_root_dir"]), "lightning.Trainer")
    strategy = instantiate(node.get("strategy", "auto"), "trainer.strategy")
    strategy = strategies.choose(strategy, model, ranks.size(), node.get("precision"))
    # chosen here, so that Lightning does not guess it from SLURM's variables in the environment
    environment = LightningEnvironment() if ranks.size() == 1 else TorchElasticEnvironment()
    plugins = [checkpoints.AtomicCheckpointIO(), environment]
    # the ranks exist already, and `auto` may mean more devices than there are ranks
    local_size = int(os.environ["LOCAL_WORLD_SIZE"]) if ranks.size() > 1 else 1
    devices = node.get("devices", "auto")
    if isinstance(devices, str) and "," in devices:
        devices = [int(device) for device in devices.split(",")]
    devices = devices if isinstance(devices, list) else local_size
    node = {**node, "devices": devices, "num_nodes": ranks.size() // local_size}
    try:
        trainer = instantiate({**node, "strategy": strategy}, "trainer", plugins=plugins, **arguments)
    except MisconfigurationException as error:  # a missing accelerator, or incompatible arguments
        hint = "; accelerator=cpu runs everywhere" if "backend" in str(error) else ""
        raise UserError(f"trainer: {' '.join(str(error).split())}{hint}") from error
    if not isinstance(trainer.profiler, PassThroughProfiler):  # Lightning would log the report, which users do not see
        trainer.profiler.dirpath = trainer.profiler.dirpath or arguments["default_root_dir"] / "profile"
        trainer.profiler.filename = trainer.profiler.filename or "report"
    if node.get("sync_batchnorm") and trainer.strategy.root_device.type == "cpu":
        trainer.strategy._layer_sync = SyncBatchNorm()
    return trainer


def build_model(
    config: RunConfig, data_state: dict[str, Any] | None = None
) -> tuple[LightningModule, LightningDataModule | None]:
    """Build the model and the data that a config describes, with weights drawn from the seed.

    With `data=none` there is no data module: the model has its own loaders. `data_state` is the state dict of the data
    in a checkpoint, such as a vocabulary that was fitted to its files.
    """
    if set_threads(config["threads"]) > cores() and config["threads"]:
        say(f"threads={config['threads']}: more than the {cores()} cores here, on which fewer threads are faster")
    seed_everything(config["seed"])
    data = instantiate(config["data"], "data") if config["data"] else None
    model = instantiate(config["model"], "model")
    _check_kind(model, LightningModule, "model")
    if data is None:
        if not is_overridden("train_dataloader", model):
            raise UserError(missing_loaders(config["model"]["_target_"]))
        return model, None
    _check_kind(data, LightningDataModule, "data")
    if data_state:
        data.load_state_dict(data_state)
    return model, data


def set_threads(threads: int | None) -> int:
    """Set torch's number of threads, by default the cores divided by the processes on this machine; return it."""
    if threads is None and (variable := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]):
        threads = int(variable)  # torch may have read it earlier, in the process that this one was forked from
    elif threads is None:
        threads = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        if os.environ.get("SLURM_STEP_NUM_TASKS") == os.environ.get("WORLD_SIZE"):  # SLURM divided the cores
            threads = min(cores(), int(os.environ.get("SLURM_CPUS_PER_TASK", threads)))
    torch.set_num_threads(threads)
    return torch.get_num_threads()


def _check_kind(part: object, kind: type, path: str) -> None:
    if not isinstance(part, kind):
        raise UserError(f"{path}._target_ builds a {type(part).__name__}; it must be a {kind.__name__}")
