"""The training epoch loop: Lightning's own, made exact to resume and nearly free per step.

`EpochLoop` stands in for `trainer.fit_loop.epoch_loop`. It adds two things. Before every batch it seeds all
random generators from (seed, step, rank), and it puts the data back to the batch where a resumed epoch
stopped. And where nothing asks for more, it runs batches in a tight loop that calls only the hooks that
somebody overrides; whatever it does not cover goes through Lightning's `advance`, with bit-equal weights.
It leans on private parts of Lightning 2.6, here and nowhere else.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.optimization.manual import ManualResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from leyden.batch import split_microbatches
from leyden.callbacks.clock import StepClock
from leyden.contracts import SeekableLoader

# Hooks that the tight loop does not call: whoever overrides one takes Lightning's way.
UNCOVERED = {
    LightningModule: (
        "backward",
        "clip_gradients",
        "configure_gradient_clipping",
        "lr_scheduler_step",
        "on_after_backward",
        "on_after_batch_transfer",
        "on_before_backward",
        "on_before_batch_transfer",
        "on_before_optimizer_step",
        "on_before_zero_grad",
        "on_train_batch_start",
        "optimizer_step",
        "optimizer_zero_grad",
        "transfer_batch_to_device",
    ),
    LightningDataModule: ("on_after_batch_transfer", "on_before_batch_transfer", "transfer_batch_to_device"),
    Callback: ("on_after_backward", "on_before_backward", "on_before_optimizer_step", "on_before_zero_grad"),
}
_MPS = torch.backends.mps.is_available()


@lru_cache
def _base(seed: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])


def seed_everything(seed: int, step: int = 0, rank: int = 0) -> None:
    """Seed torch, CUDA, numpy and random from three numbers; torch.manual_seed takes 20 times as long on a CPU."""
    mixed = (_base(seed, rank) + step * 0x9E3779B1) & 0xFFFFFFFF  # a Weyl sequence: 2**32 steps until it repeats
    torch.default_generator.manual_seed(mixed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(mixed)
    elif _MPS:
        torch.mps.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)


def install(trainer: Trainer, seed: int, accumulate: int = 1) -> None:
    """Give a trainer this loop, and leave the signals to leyden; a batch is taken in `accumulate` parts."""
    trainer.fit_loop.epoch_loop = EpochLoop(trainer, seed)
    if accumulate > 1:
        trainer.fit_loop.epoch_loop.automatic_optimization = PartedOptimization(trainer, accumulate)
    trainer._signal_connector.register_signal_handlers = lambda: None
    precision = trainer.precision_plugin
    if type(precision) is MixedPrecision and precision.scaler is None:
        # nothing is scaled, so gradients of a fused optimizer can be clipped; Lightning refuses all the same
        precision.clip_gradients = partial(Precision.clip_gradients, precision)


def logged_names(trainer: Trainer) -> set[str]:
    """The names that LightningModule.log was given so far, in training too."""
    return set(trainer.callback_metrics) | {str(key).partition(".")[2] for key in trainer._results or ()}


def just_logged(trainer: Trainer) -> dict[str, Any]:
    """What the pass that is under way, or has just ended, has logged for callbacks; nothing of earlier passes."""
    return trainer._logger_connector.metrics["callback"] if trainer._results else {}


class PartedOptimization(_AutomaticOptimization):
    """One optimizer step for each batch, whose parts are taken one after another: for what does not fit into memory.

    A batch is still one of all counters, so a run goes on with any number of parts.
    """

    def __init__(self, trainer: Trainer, num_parts: int) -> None:
        super().__init__(trainer)
        self._num_parts = num_parts

    def _make_closure(self, kwargs: OrderedDict, optimizer: torch.optim.Optimizer, batch_idx: int) -> Closure:
        """Return what adds up the gradients of the parts; the ranks talk to each other in the last of them."""
        if self._skip_backward:
            return super()._make_closure(kwargs, optimizer, batch_idx)
        clear = self._make_zero_grad_fn(batch_idx, optimizer)
        backward = self._make_backward_fn(optimizer)

        def step(part: Any, share: float) -> ClosureResult:
            result = self._training_step(OrderedDict(kwargs, batch=part))
            loss = None if result.closure_loss is None else result.closure_loss * share
            return ClosureResult(loss, extra=result.extra)

        def steps() -> ClosureResult:
            *first, last = split_microbatches(kwargs["batch"], self._num_parts)
            clear()
            before = []
            for part, share in first:
                with _block_parallel_sync_behavior(self.trainer.strategy, block=True):
                    result = step(part, share)
                    if result.closure_loss is not None:
                        backward(result.closure_loss)
                        before.append(result.loss)
            result = step(*last)
            if result.loss is not None:
                result.loss = sum(before, result.loss)
            return result

        return Closure(steps, backward)


class EpochLoop(_TrainingEpochLoop):
    """One epoch of training; see the module's text. `seed` is the run's."""

    def __init__(self, trainer: Trainer, seed: int) -> None:
        stock = trainer.fit_loop.epoch_loop
        super().__init__(trainer, stock.min_steps, stock.max_steps)
        self.seed = seed
        self.tight: bool | None = None  # whether the tight loop covers this fit; None until an epoch begins
        self.clock = StepClock()
        self.measured: int | None = None  # the step of the checkpoint that is measured when training is over

    def reset(self) -> None:
        """Start an epoch, or go on in one: a checkpoint is taken before a batch or between two epochs."""
        if self.trainer.fit_loop.restarted_on_epoch_start:
            self.restarting = False  # nothing of the epoch is done yet
        if self.restarting:  # the batch that was about to start counts as ready; it is not
            self.batch_progress.total.reset_on_restart()
            self.batch_progress.is_last_batch = False
        super().reset()

    @property
    def global_step(self) -> int:
        """The steps so far, the one counter of checkpoints, logged values and `max_steps`.

        A step is an optimizer step, or a batch when the model steps its optimizers by hand.
        """
        if self.trainer.lightning_module is None or self.trainer.lightning_module.automatic_optimization:
            return self.automatic_optimization.optim_progress.optimizer_steps
        return self.batch_progress.total.processed

    @property
    def _batches_that_stepped(self) -> int:
        """The step that logged values belong to: how many there were, as in a checkpoint's name."""
        return self.global_step if self.measured is None else self.measured

    @_batches_that_stepped.setter
    def _batches_that_stepped(self, value: int) -> None:
        """Lightning's own count starts at 0 and needs care on a restart; it is not kept."""

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Put the data at the first batch that this epoch has not trained on yet."""
        own_iterator = isinstance(data_fetcher, _DataLoaderIterDataFetcher)
        self.tight = covers(self.trainer) and not own_iterator
        done = self.batch_progress.current.ready
        if done and own_iterator:
            raise RuntimeError("a training_step that takes dataloader_iter cannot go on in the middle of an epoch")
        loaders = data_fetcher.combined_loader.flattened
        exact = len(loaders) == 1 and isinstance(loaders[0], SeekableLoader)
        for loader in loaders:
            if isinstance(loader, SeekableLoader):
                loader.seek(self.trainer.current_epoch, done if exact else 0)
        rank = self.trainer.global_rank
        seed_everything(self.seed, -1 - self.trainer.current_epoch, rank)  # a DataLoader draws its order here
        iter(data_fetcher)
        if not exact:
            first = self.batch_progress.total.ready - done
            for step in range(first, first + done):  # run forward, with the randomness of then
                seed_everything(self.seed, step, rank)
                next(data_fetcher)
        data_fetcher.fetched = done
        data_fetcher._start_profiler = self._on_before_fetch
        data_fetcher._stop_profiler = self._on_after_fetch

    def _on_before_fetch(self) -> None:
        self.clock.enter("data")
        super()._on_before_fetch()

    def on_iteration_done(self) -> None:
        """Be done with restarting: Lightning would skip the plateau schedules of a resumed epoch."""
        super().on_iteration_done()
        self.trainer.fit_loop._restarting = False

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on one batch, or on as many as need nothing between them but their hooks."""
        if self.tight and not self.restarting:
            self._run_tight(data_fetcher)
        else:
            seed_everything(self.seed, self.batch_progress.total.ready, self.trainer.global_rank)
            super().advance(data_fetcher)

    def _run_tight(self, fetcher: _DataFetcher) -> None:
        """Train until the epoch or the fit ends or a validation may be due; the caller ends the last batch."""
        trainer, rank = self.trainer, self.trainer.global_rank
        model, strategy, precision = trainer.lightning_module, trainer.strategy, trainer.precision_plugin
        automatic, optimizer = model.automatic_optimization, strategy.optimizers[0]
        schedulers = [config for config in trainer.lr_scheduler_configs if automatic and config.interval == "step"]
        on_start = _hooks(trainer, "on_train_batch_start")
        on_end = _hooks(trainer, "on_train_batch_end")
        model_end = is_overridden("on_train_batch_end", model)
        direct = (
            type(precision) is Precision and strategy.model is model
        )  # nothing is cast, and nothing wraps the model
        training_step = model.training_step if direct else strategy.training_step
        batches = _direct(fetcher, trainer.current_epoch, self.batch_progress.current.ready)
        takes_index = is_param_in_hook_signature(model.training_step, "batch_idx", min_args=2)
        progress, counts = self.batch_progress, self.automatic_optimization.optim_progress.optimizer
        num_batches, max_steps = trainer.num_training_batches, self.max_steps
        validation = progress.total if trainer.check_val_every_n_epoch is None else progress.current
        connector, results, attributes, clock = trainer._logger_connector, self._results, model.__dict__, self.clock
        self.val_loop.restarting = False

        while True:
            seed_everything(self.seed, progress.total.ready, rank)
            index = progress.current.ready
            if batches:
                clock.enter("data")
                batch = next(batches)
                progress.is_last_batch = index + 1 == num_batches
            else:
                batch, _, _ = next(fetcher)
                progress.is_last_batch = fetcher.done
                batch = strategy.batch_to_device(precision.convert_input(batch), dataloader_idx=0)
            progress.increment_ready()
            connector._first_loop_iter = connector._first_loop_iter is None
            results.batch, results.batch_size, results.dataloader_idx = batch, None, None
            attributes["_current_fx_name"] = "on_train_batch_start"  # LightningModule.log asks for it
            for hook in on_start:
                hook(trainer, model, batch, index)
            progress.increment_started()

            attributes["_current_fx_name"] = "training_step"
            output = training_step(batch, index) if takes_index else training_step(batch)
            if automatic:
                output = _optimize(trainer, optimizer, output)
                _count(counts)
            else:
                output = ManualResult.from_training_step_output(output).asdict()
            progress.increment_processed()
            for config in schedulers:
                if (index + 1) % config.frequency == 0:
                    self.scheduler_progress.increment_ready()
                    config.scheduler.step()
                    self.scheduler_progress.increment_completed()
            last = index + 1 == num_batches or progress.is_last_batch
            if last:
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)

            attributes["_current_fx_name"] = "on_train_batch_end"
            for hook in on_end:
                hook(trainer, model, output, batch, index)
            if model_end:
                model.on_train_batch_end(output, batch, index)
            attributes["_current_fx_name"] = None
            if results:  # somebody called LightningModule.log
                connector.on_batch_end()
            progress.increment_completed()
            if results:
                connector.update_train_step_metrics()
            stops = last or trainer.should_stop or self.global_step == max_steps
            if stops or validation.ready % trainer.val_check_batch == 0:
                return


def covers(trainer: Trainer) -> bool:
    """Tell whether the tight loop does all that this fit asks for."""
    model, strategy, precision = trainer.lightning_module, trainer.strategy, trainer.precision_plugin
    overriding: list[tuple[type, Any]] = [(LightningModule, model), *((Callback, c) for c in trainer.callbacks)]
    if trainer.datamodule is not None:
        overriding.append((LightningDataModule, trainer.datamodule))
    by_hand = not model.automatic_optimization
    return (
        (by_hand or _plain(strategy.optimizers))
        and isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
        and (
            type(precision) is Precision
            or (type(precision) is MixedPrecision and (by_hand or precision.scaler is None))
        )
        and trainer.accumulate_grad_batches == 1
        and (by_hand or type(trainer.fit_loop.epoch_loop.automatic_optimization) is _AutomaticOptimization)
        and trainer._val_check_time_interval is None
        and isinstance(trainer.profiler, PassThroughProfiler)
        and not trainer.fast_dev_run
        and not any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs if config.interval == "step")
        and not any(
            is_overridden(hook, owner, parent=parent) for parent, owner in overriding for hook in UNCOVERED[parent]
        )
    )


def _plain(optimizers: list[torch.optim.Optimizer]) -> bool:
    """Tell whether there is one optimizer, and one that wants no closure."""
    (first, *others) = optimizers
    home = type(first).__module__
    return not others and home.startswith("torch.optim") and not isinstance(first, torch.optim.LBFGS)


def _optimize(trainer: Trainer, optimizer: torch.optim.Optimizer, output: Any) -> dict[str, Any]:
    """Take one optimizer step down the loss that a training step returned."""
    output = output if isinstance(output, dict) else {"loss": output}
    loss = output["loss"]
    optimizer.zero_grad()
    if loss is not None:
        loss.backward()
        output = {**output, "loss": loss.detach()}
    if trainer.gradient_clip_val:
        algorithm = trainer.gradient_clip_algorithm or "norm"
        trainer.precision_plugin.clip_gradients(optimizer, trainer.gradient_clip_val, algorithm)
    optimizer.step()
    return output


def _direct(fetcher: _DataFetcher, epoch: int, batch: int) -> Iterator | None:
    """Iterate over a loader whose batches are where the model is, without Lightning's fetcher around it."""
    loaders = fetcher.combined_loader.flattened
    if len(loaders) != 1 or not getattr(loaders[0], "resident", False):
        return None
    loaders[0].seek(epoch, batch)
    return iter(loaders[0])


def _hooks(trainer: Trainer, name: str) -> list[Callable]:
    """List the callbacks' hooks of this name that do something."""
    return [getattr(c, name) for c in trainer.callbacks if is_overridden(name, c, parent=Callback)]


def _count(counts: Any) -> None:
    """Count one optimizer step, as Lightning's hooks would have."""
    counts.zero_grad.increment_ready()
    counts.zero_grad.increment_started()
    counts.zero_grad.increment_completed()
    counts.step.increment_ready()
    counts.step.increment_completed()
