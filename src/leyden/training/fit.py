"""Train a run in this process: fit, test, and collect the metrics for its status."""

import os
import re
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.nn.parameter import is_lazy

from leyden import checkpoints
from leyden.checkpoints import choose, initial, recover
from leyden.config.run_config import RunConfig
from leyden.console import say
from leyden.contracts import BestLogger, CheckpointLogger, ClosableLogger, TruncatingLogger
from leyden.distributed import ranks
from leyden.distributed.signals import Interrupted, Stop
from leyden.errors import UserError, nearest
from leyden.metric_names import named_metrics
from leyden.run.directory import Run, step_of
from leyden.run.initial_weights import check_copy, copy_path
from leyden.run.summary import logged_at
from leyden.training.assemble import Parts, build
from leyden.training.loop import EpochLoop
from leyden.training.seeding import seed_everything

# in the errors of Lightning's EarlyStopping and ModelCheckpoint about a metric that is not logged
UNLOGGED = re.compile(r"(Early stopping) conditioned on metric `(.+?)`|`(ModelCheckpoint)\(monitor='(.+?)'\)`")
STATE_ERROR = re.compile(r"state_dict for |loaded state dict ")  # in torch's errors about a state dict that misfits


def train(run: Run, config: RunConfig, stop: Stop) -> tuple[dict[str, Any], bool]:
    """Start the run in a directory, or resume it from its last whole checkpoint.

    Return the metrics for the status (see `_results`), and whether the run was pruned, in which case it is not tested.

    Every rank calls this. The caller holds the run's lock and writes its last status.
    """
    parts = build(run, config, stop)
    exit_code = 1
    try:
        checkpoint = _prepare_resume(run, config) if ranks.rank() == 0 else None
        ranks.barrier("built")  # rank 0 may need long to read checkpoints
        checkpoint = ranks.broadcast(checkpoint)
        step = step_of(checkpoint) if checkpoint else 0
        if checkpoint is None:
            _load_initial_weights(run, config, parts)
        _prepare_loggers(parts, step)
        say(_headline(run, parts, step))
        if ranks.rank() == 0:
            run.forget_results()
            is_dev_run = bool(config["trainer"].get("fast_dev_run"))
            run.set_status("running", step=step, pid=os.getpid(), started=time.time(), fast_dev_run=is_dev_run)
        _fit(parts, checkpoint, config["seed"])
        pruned = any(callback.pruned for callback in parts.pruning)
        final_checkpoint = ranks.broadcast(run.best_checkpoint() or choose.newest(run))
        results = _results(run, parts, final_checkpoint)
        if config["test"] and not pruned and _has_test(parts):
            if final_checkpoint:  # with test(ckpt_path=…), EMA would restore the weights that are not averaged
                checkpoints.load_weights(parts.model, final_checkpoint)
            epoch_loop = parts.trainer.fit_loop.epoch_loop
            assert isinstance(epoch_loop, EpochLoop)
            epoch_loop.measured_step = results["checkpoint"]["step"]
            seed_everything(config["seed"])  # a `setup` that draws its splits must draw those of the training
            parts.trainer.test(parts.model, parts.data, verbose=False)
            results["metrics"] |= named_metrics(parts.trainer.callback_metrics)
        _log_checkpoints(run, parts)
        stop.done, exit_code = True, 0
        return results, pruned
    except Interrupted as interruption:
        exit_code = interruption.exit_code
        if ranks.rank() == 0:  # closing the loggers may take longer than a scheduler waits
            run.set_status(interruption.state, exit_code=exit_code)
        raise
    finally:
        _close(run, parts, exit_code)


def _results(run: Run, parts: Parts, final_checkpoint: Path | None) -> dict[str, Any]:
    """Return the results for the status: which checkpoint is tested, and the metrics.

    `metrics` belong to the step of that checkpoint; `last_metrics` are the latest values of any step.
    """
    checkpoint, latest = parts.checkpoint, dict(parts.checkpoint.metrics)
    step = step_of(final_checkpoint) if final_checkpoint else parts.trainer.global_step
    if step == checkpoint.best.get("step"):
        criterion = {key: checkpoint.best[key] for key in ("metric", "value")} | {"mode": checkpoint.mode}
        # a checkpoint of an older leyden does not hold the metrics
        metrics = checkpoint.best.get("metrics") or logged_at(run, step)
        return {
            "metrics": dict(metrics),
            "checkpoint": {"is": "best", "step": step, **criterion},
            "last_metrics": latest,
        }
    metrics = checkpoint.last["metrics"] if checkpoint.last.get("step") == step else {}
    return {"metrics": dict(metrics), "checkpoint": {"is": "last", "step": step}, "last_metrics": latest}


def _prepare_resume(run: Run, config: RunConfig) -> Path | None:
    """Recover the run's files, check for changes of the code, and return the checkpoint to resume from, or None."""
    checkpoint = recover.recover(run)
    recover.check_code(run, is_resumed=checkpoint is not None, strict=config.get("strict_code", False))
    return checkpoint


def _load_initial_weights(run: Run, config: RunConfig, parts: Parts) -> None:
    """Load the run's copy of the weights that `init` names, if it names any; every rank calls this."""
    if not (init := config.get("init")):
        return
    path = check_copy(run.path, init) if ranks.rank() == 0 else copy_path(run.path, init)
    origin = initial.load(parts.model, init, path)
    initial.report(init, origin)
    if ranks.rank() == 0:
        run.update_manifest(init=origin._asdict())


def _fit(parts: Parts, checkpoint: Path | None, seed: int) -> None:
    seed_everything(seed)  # a data module's `setup` may draw its splits
    try:
        parts.trainer.fit(parts.model, datamodule=parts.data, ckpt_path=checkpoint, weights_only=True)
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        if match := UNLOGGED.match(str(error)):
            callback, name = filter(None, match.groups())
            logged = nearest(name, named_metrics(parts.trainer.callback_metrics))
            raise UserError(
                f"{callback.replace('Early s', 'EarlyS')}: monitor={name} was not logged{logged}"
            ) from error
        if isinstance(error, MisconfigurationException):  # a hook that is missing, for instance
            raise UserError(" ".join(str(error).split())) from error
        if checkpoint and not isinstance(error, UserError) and STATE_ERROR.search(str(error)):
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(
                f"{checkpoint.name} does not fit the model that the code builds now: {lines[min(1, len(lines) - 1)]}; "
                "restore the code, or start again with leyden rerun"
            ) from error
        raise


def _close(run: Run, parts: Parts, exit_code: int) -> None:
    """Record the last step, and close the loggers, so that the next job of a sweep can start its own."""
    if ranks.rank() == 0:
        run.note(step=parts.trainer.global_step, epoch=parts.trainer.current_epoch)
    for logger in parts.loggers:
        try:
            if isinstance(logger, ClosableLogger):
                logger.close(exit_code)
        except Exception as error:  # an error in a logger must not change how the run ended
            say(f"{type(logger).__name__} could not be closed: {error}")


def _prepare_loggers(parts: Parts, step: int) -> None:
    """Drop what was logged after the checkpoint to resume from; tell loggers which metric has a best value."""
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
    # a lazy layer such as torch.nn.LazyLinear has no weights before its first batch
    parameters = sum(p.numel() for p in parts.model.parameters() if p.requires_grad and not is_lazy(p))
    num_threads = torch.get_num_threads()
    threads = f"{num_threads} thread{'s' if num_threads > 1 else ''}"
    start = f"resumed at step {step}" if step else f"seed {run.config['seed']}"
    num_nodes, device = parts.trainer.num_nodes, str(parts.trainer.strategy.root_device)
    if ranks.size() > 1:
        device += f"  {ranks.size()} ranks" + (f" on {num_nodes} nodes" if num_nodes > 1 else "")
    return f"{run.name}  {parameters:,} parameters  {device}  {threads}  {start}"


def _has_test(parts: Parts) -> bool:
    return is_overridden("test_step", parts.model) and is_overridden("test_dataloader", parts.data or parts.model)
