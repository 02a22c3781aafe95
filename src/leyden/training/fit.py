"""What a process does with a run: config -> objects -> fit -> test -> metrics."""

import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn.parameter import is_lazy

from leyden import checkpoints
from leyden.callbacks.checkpoint import Checkpoint
from leyden.callbacks.heartbeat import Heartbeat
from leyden.callbacks.metering import Metering
from leyden.callbacks.profile import Profile
from leyden.callbacks.progress import Progress
from leyden.callbacks.throughput import Throughput
from leyden.checkpoints import choose, recover
from leyden.config.expectations import expectations
from leyden.config.instantiate import instantiate
from leyden.config.output_paths import with_paths_in
from leyden.console import say
from leyden.contracts import BestLogger, CheckpointLogger, ClosableLogger, TruncatingLogger
from leyden.distributed import ranks
from leyden.distributed.batchnorm import SyncBatchNorm
from leyden.distributed.world import cores
from leyden.errors import UserError
from leyden.run.directory import Run, step_of
from leyden.run.summary import logged_at
from leyden.signals import Interrupted, Stop
from leyden.training import loop, strategies
from leyden.training.loggers import build_loggers

MISFIT = re.compile(r"state_dict for |loaded state dict ")  # how torch begins what it says of weights and optimizers

for _chatty in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)


@dataclass
class Parts:
    """The objects that a config describes."""

    model: LightningModule
    data: LightningDataModule
    trainer: Trainer
    loggers: list[Logger]
    checkpoint: Checkpoint
    reports: list[Any]


def train(run: Run, config: dict, stop: Stop) -> tuple[dict[str, Any], bool]:
    """Start the run in a directory, or go on where its last whole checkpoint left it.

    Return what the status is to say of the metrics (see `_results`), and whether a sweep gave the run up, which then
    has no test.

    Every rank does. The caller holds the run's lock and writes its last status.
    """
    parts = build(run, config, stop)
    exit_code = 1
    try:
        checkpoint = _resumable(run, config) if ranks.rank() == 0 else None
        ranks.meet("built")  # reading checkpoints may take long, too
        checkpoint = ranks.broadcast(checkpoint)
        step = step_of(checkpoint) if checkpoint else 0
        _prepare_loggers(parts, step)
        say(_headline(run, parts, step))
        if ranks.rank() == 0:
            run.forget_results()
            run.set_status("running", step=step, pid=os.getpid(), started=time.time())
        _fit(parts, checkpoint)
        pruned = any(report.pruned for report in parts.reports)
        chosen = ranks.broadcast(run.best_checkpoint() or choose.newest(run))
        results = _results(run, parts, chosen)
        if config["test"] and not pruned and _has_test(parts):
            if chosen:  # given to test() as ckpt_path, EMA would put the weights that are not averaged back
                checkpoints.load_weights(parts.model, chosen)
            parts.trainer.fit_loop.epoch_loop.measured = results["checkpoint"]["step"]
            parts.trainer.test(parts.model, parts.data, verbose=False)
            results["metrics"] |= {name: float(value) for name, value in parts.trainer.callback_metrics.items()}
        _log_checkpoints(run, parts)
        stop.done, exit_code = True, 0
        return results, pruned
    except Interrupted as stopped:
        exit_code = stopped.exit_code
        if ranks.rank() == 0:  # now: closing loggers may outlast a scheduler's patience
            run.set_status(stopped.state, exit_code=exit_code)
        raise
    finally:
        _close(run, parts, exit_code)


def build(run: Run, config: dict, stop: Stop) -> Parts:
    """Build everything that a config describes."""
    model, data = build_learner(config)
    loggers = build_loggers(run, config)
    throughput = Throughput()
    reports = _reports(run)
    expected = [("expect.metric", claim["metric"]) for claim in expectations(config)]
    expected += [("hydra.sweeper.objective", report.metric) for report in reports if report.metric]
    metering = Metering(expected, throughput)
    checkpoint = instantiate(config["checkpoint"], "checkpoint", run_dir=run.path, config=config, stop=stop)
    chosen = [
        instantiate(with_paths_in(node, run.path), f"callbacks.{name}")
        for name, node in (config["callbacks"] or {}).items()
        if node
    ]
    chosen += [Profile(run.path)] if config["profile"] else []
    trainer = build_trainer(
        {"num_sanity_val_steps": 1, "enable_model_summary": False, **config["trainer"]},
        model,
        logger=loggers,
        callbacks=[throughput, metering, *chosen, *reports, Heartbeat(run), Progress(metering), checkpoint],
        default_root_dir=run.path,
    )
    # Lightning converts the model after it has read a checkpoint into it, which would round float64 weights to float32.
    trainer.precision_plugin.convert_module(model)
    loop.install(trainer, config["seed"], config["accumulate"])
    return Parts(model, data, trainer, loggers, checkpoint, reports)


def _results(run: Run, parts: Parts, chosen: Path | None) -> dict[str, Any]:
    """Say what was measured of the checkpoint that is to be tested, and which one that is.

    `metrics` are its own, of one step; `last_metrics` are the latest values of the training, whatever their step.
    """
    kept, latest = parts.checkpoint, dict(parts.checkpoint.metrics)
    step = step_of(chosen) if chosen else parts.trainer.global_step
    if step == kept.best.get("step"):
        why = {key: kept.best[key] for key in ("metric", "value")} | {"mode": kept.mode}
        # a checkpoint of an older leyden does not hold the metrics
        metrics = kept.best.get("metrics") or logged_at(run, step)
        return {"metrics": dict(metrics), "checkpoint": {"is": "best", "step": step, **why}, "last_metrics": latest}
    own = kept.last["metrics"] if kept.last.get("step") == step else {}
    return {"metrics": dict(own), "checkpoint": {"is": "last", "step": step}, "last_metrics": latest}


def _reports(run: Run) -> list[Any]:
    """What tells a sweep's study of the run, if it is a sweep's."""
    if not run.sweep:
        return []
    from leyden.callbacks.report import Report  # with optuna

    return [Report(run)]


def build_learner(config: dict) -> tuple[LightningModule, LightningDataModule]:
    """Build a model and data to train: compiled, if that was asked for, once the config suits the model."""
    model, data = build_model(config)
    _check_by_hand(model, config)
    _check_parts(model, data, config["accumulate"])
    if config["compile"]:
        _compile(model)
    return model, data


def _check_by_hand(model: LightningModule, config: dict) -> None:
    """Refuse what the trainer could only do to an optimizer that it steps itself."""
    value = config["trainer"].get("gradient_clip_val")
    if value and not model.automatic_optimization:
        instead = f": set model.gradient_clip_val={value}" if hasattr(model, "gradient_clip_val") else ""
        raise UserError(
            f"trainer.gradient_clip_val={value} has no effect on a model that steps its optimizers itself{instead}"
        )


def _check_parts(model: LightningModule, data: LightningDataModule, accumulate: int) -> None:
    """Refuse to cut batches of which the model would not know what to do with the parts."""
    if accumulate == 1:
        return
    if not model.automatic_optimization and getattr(model, "accumulate", None) != accumulate:
        instead = ": write model.accumulate=${accumulate}" if hasattr(model, "accumulate") else ""
        raise UserError(f"accumulate={accumulate} has no effect on a model that steps its optimizers itself{instead}")
    if getattr(data, "carry", False):
        raise UserError(
            f"accumulate={accumulate}: rows that carry a state on to the next batch are not cut in parts; set "
            "data.carry=false, or lower data.batch_size or data.window"
        )


def _compile(model: LightningModule) -> None:
    """Compile what a model computes with."""
    nets = getattr(model, "net", None)
    if not isinstance(nets, torch.nn.Module):
        raise UserError(f"compile=true: {type(model).__name__} has no net to compile")
    for net in nets.values() if isinstance(nets, torch.nn.ModuleDict) else [nets]:
        net.compile()


def build_trainer(node: dict, model: LightningModule, **supplied: Any) -> Trainer:
    """Build the trainer of a config for the ranks that there are; what it writes is below `default_root_dir`."""
    node = with_paths_in(node, Path(supplied["default_root_dir"]), "lightning.Trainer")
    strategy = instantiate(node.get("strategy", "auto"), "trainer.strategy")
    strategy = strategies.choose(strategy, model, ranks.size(), node.get("precision"))
    # said here, so that Lightning does not guess from what SLURM has left in the environment
    environment = LightningEnvironment() if ranks.size() == 1 else TorchElasticEnvironment()
    plugins = [checkpoints.AtomicCheckpointIO(), environment]
    # they are here already, whoever made them; what the config calls `auto` may be more than there are
    local_size = int(os.environ["LOCAL_WORLD_SIZE"]) if ranks.size() > 1 else 1
    devices = node.get("devices", "auto")
    if isinstance(devices, str) and "," in devices:
        devices = [int(device) for device in devices.split(",")]
    node = {
        **node,
        "devices": devices if isinstance(devices, list) else local_size,
        "num_nodes": ranks.size() // local_size,
    }
    try:
        trainer = instantiate({**node, "strategy": strategy}, "trainer", plugins=plugins, **supplied)
    except MisconfigurationException as error:  # no such accelerator here, or arguments that exclude each other
        hint = "; accelerator=cpu runs everywhere" if "backend" in str(error) else ""
        raise UserError(f"trainer: {' '.join(str(error).split())}{hint}") from error
    if node.get("sync_batchnorm") and trainer.strategy.root_device.type == "cpu":
        trainer.strategy._layer_sync = SyncBatchNorm()
    return trainer


def build_model(config: dict, learned: dict | None = None) -> tuple[LightningModule, LightningDataModule]:
    """Build the model and the data that a config describes, weights drawn from the seed.

    `learned` is the state of the data in a checkpoint: what it had learned of its files.
    """
    set_threads(config["threads"])
    loop.seed_everything(config["seed"])
    data = instantiate(config["data"], "data")
    model = instantiate(config["model"], "model")
    _check_kind(model, LightningModule, "model")
    _check_kind(data, LightningDataModule, "data")
    if learned:
        data.load_state_dict(learned)  # before the model asks for it
    for name in getattr(model, "from_data", ()):
        if getattr(model, name, None) is None:
            setattr(model, name, getattr(data, name, None))
    return model, data


def set_threads(threads: int | None) -> int:
    """Give torch its share of the cores: the machine's, over the processes on it, unless set."""
    if threads is None and (asked := os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]):
        threads = int(asked)  # perhaps of this process alone, which has torch from the one that it was forked from
    elif threads is None:
        threads = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        if os.environ.get("SLURM_STEP_NUM_TASKS") == os.environ.get("WORLD_SIZE"):  # SLURM has shared them out already
            threads = min(cores(), int(os.environ.get("SLURM_CPUS_PER_TASK", threads)))
    torch.set_num_threads(threads)
    return torch.get_num_threads()


def _resumable(run: Run, config: dict) -> Path | None:
    """Return the checkpoint to go on from, with the same code as before, if that is asked for."""
    checkpoint = recover.checkpoint(run)
    recover.check_code(run, goes_on=checkpoint is not None, strict=config.get("strict_code", False))
    return checkpoint


def _fit(parts: Parts, checkpoint: Path | None) -> None:
    try:
        parts.trainer.fit(parts.model, datamodule=parts.data, ckpt_path=checkpoint, weights_only=True)
    except (RuntimeError, ValueError) as error:
        if checkpoint and not isinstance(error, UserError) and MISFIT.search(str(error)):
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(
                f"{checkpoint.name} does not fit the model that the code builds now: {lines[min(1, len(lines) - 1)]}; "
                "restore the code, or begin anew with leyden rerun"
            ) from error
        raise


def _close(run: Run, parts: Parts, exit_code: int) -> None:
    """Note how far training came, and end the loggers, so that the next job of a sweep starts its own."""
    if ranks.rank() == 0:
        run.note(step=parts.trainer.global_step, epoch=parts.trainer.current_epoch)
    for logger in parts.loggers:
        try:
            if isinstance(logger, ClosableLogger):
                logger.close(exit_code)
        except Exception as error:  # a logger's trouble must not change how the run ended
            say(f"{type(logger).__name__} could not be closed: {error}")


def _prepare_loggers(parts: Parts, step: int) -> None:
    """Drop what was logged after the checkpoint that the run goes on from; say which metric has a best value."""
    monitor = parts.checkpoint.monitor_of(parts.model)
    for logger in parts.loggers:
        if isinstance(logger, TruncatingLogger):
            logger.truncate(step)
        if monitor and isinstance(logger, BestLogger):
            logger.log_best(*monitor)


def _log_checkpoints(run: Run, parts: Parts) -> None:
    for alias in ("best", "last"):
        path = run.path / "checkpoints" / f"{alias}.ckpt"
        for logger in parts.loggers if path.exists() else ():
            if isinstance(logger, CheckpointLogger):
                logger.log_checkpoint(path, [alias], step_of(path.resolve()))


def _headline(run: Run, parts: Parts, step: int) -> str:
    # a lazy layer, torch.nn.LazyLinear, has its weights when it has seen a batch
    parameters = sum(p.numel() for p in parts.model.parameters() if p.requires_grad and not is_lazy(p))
    threads = torch.get_num_threads()
    start = f"resumed at step {step}" if step else f"seed {run.config['seed']}"
    where = (
        f"{ranks.size()} ranks on {parts.trainer.num_nodes} nodes"
        if parts.trainer.num_nodes > 1
        else f"{ranks.size()} ranks"
    )
    device = f"{parts.trainer.strategy.root_device}" + (f"  {where}" if ranks.size() > 1 else "")
    return f"{run.name}  {parameters:,} parameters  {device}  {threads} threads  {start}"


def _has_test(parts: Parts) -> bool:
    return type(parts.model).test_step is not LightningModule.test_step and (
        type(parts.data).test_dataloader is not LightningDataModule.test_dataloader
    )


def _check_kind(found: object, kind: type, path: str) -> None:
    if not isinstance(found, kind):
        raise UserError(f"{path}._target_ builds a {type(found).__name__}; it must be a {kind.__name__}")
