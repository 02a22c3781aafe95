"""Lightning's training epoch loop, made exactly resumable and nearly free of overhead per step.

`EpochLoop` replaces `trainer.fit_loop.epoch_loop`. Before every batch it seeds all random generators from (seed,
step, rank), and it moves the data to the batch where a resumed epoch stopped. If `can_run_tight` allows it, batches run
in a tight loop that calls only hooks that are overridden; all other fits go through Lightning's `advance`, with
bit-equal weights. The loop uses private parts of Lightning 2.6.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.optimization.manual import ManualResult
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.enums import GradClipAlgorithmType
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from typing_extensions import override

from leyden.callbacks.clock import StepClock
from leyden.contracts import SeekableLoader
from leyden.training import logged
from leyden.training.microbatches import MicrobatchOptimization
from leyden.training.seeding import LoaderSource, seed_everything

Hook = Callable[..., Any]
TRANSFER_HOOKS = ("on_after_batch_transfer", "on_before_batch_transfer", "transfer_batch_to_device")
BACKWARD_HOOKS = ("on_after_backward", "on_before_backward", "on_before_optimizer_step", "on_before_zero_grad")
# Hooks that the tight loop does not call; a fit that overrides one goes through Lightning's `advance`.
UNCOVERED_HOOKS = {
    LightningModule: (
        *("backward", "clip_gradients", "configure_gradient_clipping", "lr_scheduler_step", "on_train_batch_start"),
        *("optimizer_step", "optimizer_zero_grad", *TRANSFER_HOOKS, *BACKWARD_HOOKS),
    ),
    LightningDataModule: TRANSFER_HOOKS,
    Callback: BACKWARD_HOOKS,
}


def install(trainer: Trainer, seed: int, accumulate: int = 1) -> None:
    """Give a trainer this loop, and leave signals to leyden; each batch is split into `accumulate` microbatches."""
    trainer.fit_loop.epoch_loop = EpochLoop(trainer, seed)
    loops = (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop)
    for loop in loops:
        vars(loop)["_data_source"] = LoaderSource(trainer, loop._data_source.name, seed)
    trainer._logger_connector.__class__ = logged.LoggerConnector
    if accumulate > 1:
        trainer.fit_loop.epoch_loop.automatic_optimization = MicrobatchOptimization(trainer, accumulate)
    vars(trainer._signal_connector)["register_signal_handlers"] = lambda: None
    precision = trainer.precision_plugin
    if type(precision) is MixedPrecision and precision.scaler is None:
        # Lightning refuses to clip gradients for fused optimizers; without a GradScaler it is safe
        vars(precision)["clip_gradients"] = partial(Precision.clip_gradients, precision)


class EpochLoop(_TrainingEpochLoop):
    """One epoch of training, which the module's docstring describes. `seed` is the seed of the run."""

    def __init__(self, trainer: Trainer, seed: int) -> None:
        default_loop = trainer.fit_loop.epoch_loop
        super().__init__(trainer, default_loop.min_steps, default_loop.max_steps)
        self.seed = seed
        self.tight: bool | None = None  # whether the tight loop covers this fit; None until an epoch begins
        self.clock = StepClock()
        self.measured_step: int | None = None  # step of the checkpoint that is tested after training
        self.results = logged.Results()
        vars(self)["_results"] = self.results  # where Lightning looks for them

    @override
    def reset(self) -> None:
        """Start an epoch, or continue the one in which a checkpoint was taken."""
        if self.trainer.fit_loop.restarted_on_epoch_start:
            self.restarting = False  # no batch of the epoch has run yet
        if self.restarting:  # the batch that was about to start was counted as ready, but was not trained on
            self.batch_progress.total.reset_on_restart()
            self.batch_progress.is_last_batch = False
        super().reset()

    @property
    @override
    def global_step(self) -> int:
        """The number of steps so far, which counts for checkpoints, logged values and `max_steps`.

        A step is an optimizer step, or a batch if the model steps its optimizers by hand.
        """
        if self.trainer.lightning_module is None or self.trainer.lightning_module.automatic_optimization:
            return self.automatic_optimization.optim_progress.optimizer_steps
        assert isinstance(self.batch_progress.total, _ProcessedTracker)
        return self.batch_progress.total.processed

    @property
    @override
    def _batches_that_stepped(self) -> int:
        """The step that logged values belong to: the number of steps so far, as in a checkpoint's name."""
        return self.global_step if self.measured_step is None else self.measured_step

    @_batches_that_stepped.setter
    def _batches_that_stepped(self, value: int) -> None:
        """Ignore Lightning's own count, which starts at 0 and is wrong after a restart."""

    @override
    def on_save_checkpoint(self) -> dict[str, Any]:
        """Add what the unfinished epoch has logged."""
        return super().on_save_checkpoint() | {"logged": logged.state_dict(self.trainer, self.results)}

    @override
    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Continue what the checkpoint's epoch has logged; a checkpoint of an older leyden does not hold it."""
        super().on_load_checkpoint(state_dict)
        if "logged" in state_dict:
            logged.load_state_dict(self.trainer, self.results, state_dict["logged"])

    @override
    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Move the data to the first batch that this epoch has not trained on yet."""
        self._align_reloads()
        takes_iterator = isinstance(data_fetcher, _DataLoaderIterDataFetcher)
        self.tight = can_run_tight(self.trainer) and not takes_iterator
        num_trained = self.batch_progress.current.ready
        if num_trained and takes_iterator:
            raise RuntimeError("a training_step that takes dataloader_iter cannot resume in the middle of an epoch")
        loaders = data_fetcher.combined_loader.flattened
        is_seekable = len(loaders) == 1 and isinstance(loaders[0], SeekableLoader)
        for loader in loaders:
            if isinstance(loader, SeekableLoader):
                loader.seek(self.trainer.current_epoch, num_trained if is_seekable else 0)
        rank = self.trainer.global_rank
        seed_everything(self.seed, -1 - self.trainer.current_epoch, rank)  # a DataLoader draws its order here
        iter(data_fetcher)
        if not is_seekable:
            first_step = self.batch_progress.total.ready - num_trained
            # skip these batches, drawing the same random numbers
            for step in range(first_step, first_step + num_trained):
                seed_everything(self.seed, step, rank)
                next(data_fetcher)
        data_fetcher.fetched = num_trained
        data_fetcher._start_profiler = self._on_before_fetch
        data_fetcher._stop_profiler = self._on_after_fetch

    def _align_reloads(self) -> None:
        """Reload loaders in the same epochs after a resume; Lightning counts the epochs from their first load."""
        every = getattr(self.trainer, "reload_dataloaders_every_n_epochs", 0)
        for loop, name in (
            (self.trainer.fit_loop, "_last_train_dl_reload_epoch"),
            (self.val_loop, "_last_val_dl_reload_epoch"),
        ):
            epoch = getattr(loop, name)
            if every and epoch >= 0:  # -inf before the first load
                setattr(loop, name, epoch // every * every)

    @override
    def _on_before_fetch(self) -> None:
        self.clock.enter("data")
        super()._on_before_fetch()

    @override
    def on_iteration_done(self) -> None:
        """End the restart, since otherwise Lightning would skip the plateau schedules of a resumed epoch."""
        super().on_iteration_done()
        self.trainer.fit_loop._restarting = False

    @override
    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on one batch or, in the tight loop, on all batches until a validation may be due."""
        if self.tight and not self.restarting:
            self.val_loop.restarting = False
            self._run_tight(data_fetcher)
        else:
            seed_everything(self.seed, self.batch_progress.total.ready, self.trainer.global_rank)
            super().advance(data_fetcher)

    def _run_tight(self, fetcher: _DataFetcher) -> None:
        """Train until the epoch or the fit ends, or a validation may be due; the caller finishes the last batch."""
        trainer, model, strategy = self.trainer, self.trainer.lightning_module, self.trainer.strategy
        is_automatic, optimizer = model.automatic_optimization, strategy.optimizers[0]
        training_step, takes_index, schedulers, on_start, on_end = _step_parts(trainer)
        has_end_hook, rank = is_overridden("on_train_batch_end", model), trainer.global_rank
        batches = _direct_iterator(fetcher, trainer.current_epoch, self.batch_progress.current.ready)
        progress, counts = self.batch_progress, self.automatic_optimization.optim_progress.optimizer
        num_batches, max_steps, precision = trainer.num_training_batches, self.max_steps, trainer.precision_plugin
        validation_progress = progress.total if trainer.check_val_every_n_epoch is None else progress.current
        connector, results, attributes, clock = trainer._logger_connector, self._results, model.__dict__, self.clock
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
            attributes["_current_fx_name"] = "on_train_batch_start"  # LightningModule.log reads it
            for hook in on_start:
                hook(trainer, model, batch, index)
            progress.increment_started()
            attributes["_current_fx_name"] = "training_step"
            output = training_step(batch, index) if takes_index else training_step(batch)
            if is_automatic:
                output = _optimize(trainer, optimizer, output)
                counts.zero_grad.increment_by(1)
                counts.step.increment_by(1)
            else:
                output = ManualResult.from_training_step_output(output).asdict()
            progress.increment_processed()
            for config in schedulers:
                if (index + 1) % config.frequency == 0:
                    self.scheduler_progress.increment_ready()
                    config.scheduler.step()
                    self.scheduler_progress.increment_completed()
            is_last = index + 1 == num_batches or progress.is_last_batch
            if is_last:
                self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
            attributes["_current_fx_name"] = "on_train_batch_end"
            for hook in on_end:
                hook(trainer, model, output, batch, index)
            if has_end_hook:
                model.on_train_batch_end(output, batch, index)
            attributes["_current_fx_name"] = None
            if results:  # LightningModule.log was called
                connector.on_batch_end()
            progress.increment_completed()
            if results:
                connector.update_train_step_metrics()
            is_over = is_last or trainer.should_stop or self.global_step == max_steps
            if is_over or validation_progress.ready % (trainer.val_check_batch or float("inf")) == 0:
                return


def _step_parts(trainer: Trainer) -> tuple[Callable[..., Any], bool, list[Any], list[Hook], list[Hook]]:
    """Return the training step, whether it takes the batch index, the schedules per step, and the callbacks' hooks."""
    model, strategy = trainer.lightning_module, trainer.strategy
    # without casts and without a wrapper around the model, the strategy's training_step would add nothing
    is_direct = type(trainer.precision_plugin) is Precision and strategy.model is model
    takes_index = is_param_in_hook_signature(model.training_step, "batch_idx", min_args=2)
    step_schedulers = [config for config in trainer.lr_scheduler_configs if config.interval == "step"]
    schedulers = step_schedulers if model.automatic_optimization else []
    on_start, on_end = _hooks(trainer, "on_train_batch_start"), _hooks(trainer, "on_train_batch_end")
    return (model.training_step if is_direct else strategy.training_step), takes_index, schedulers, on_start, on_end


def _optimize(trainer: Trainer, optimizer: torch.optim.Optimizer, output: Any) -> dict[str, Any]:
    """Take one optimizer step on the loss that a training step returned."""
    output = output if isinstance(output, dict) else {"loss": output}
    loss = output["loss"]
    optimizer.zero_grad()
    if loss is not None:
        loss.backward()
        output = {**output, "loss": loss.detach()}
    if trainer.gradient_clip_val:
        algorithm = trainer.gradient_clip_algorithm or GradClipAlgorithmType.NORM
        trainer.precision_plugin.clip_gradients(optimizer, trainer.gradient_clip_val, algorithm)
    optimizer.step()
    return output


def _direct_iterator(fetcher: _DataFetcher, epoch: int, batch: int) -> Iterator[Any] | None:
    """Return an iterator over a resident loader that bypasses Lightning's fetcher; None for other loaders."""
    loaders = fetcher.combined_loader.flattened
    if len(loaders) != 1 or not getattr(loaders[0], "resident", False):
        return None
    loaders[0].seek(epoch, batch)
    return iter(loaders[0])


def _hooks(trainer: Trainer, name: str) -> list[Hook]:
    """List the callbacks' overridden hooks of this name."""
    return [getattr(c, name) for c in callbacks_of(trainer) if is_overridden(name, c, parent=Callback)]


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return a trainer's callbacks, an attribute that type checkers do not see."""
    return vars(trainer)["callbacks"]


def can_run_tight(trainer: Any) -> bool:
    """Return whether the tight loop does all that this fit needs.

    Type checkers do not see the attributes that Lightning's connectors set on the `Trainer`.
    """
    model, strategy, precision = trainer.lightning_module, trainer.strategy, trainer.precision_plugin
    owners: list[tuple[type, Any]] = [(LightningModule, model), *((Callback, c) for c in trainer.callbacks)]
    if trainer.datamodule is not None:
        owners.append((LightningDataModule, trainer.datamodule))
    is_manual = not model.automatic_optimization
    return (
        (is_manual or _has_one_plain_optimizer(strategy.optimizers))
        and isinstance(strategy, SingleDeviceStrategy | DDPStrategy)
        and type(precision) in (Precision, MixedPrecision)
        and (is_manual or getattr(precision, "scaler", None) is None)
        and trainer.accumulate_grad_batches == 1
        and (is_manual or type(trainer.fit_loop.epoch_loop.automatic_optimization) is _AutomaticOptimization)
        and trainer._val_check_time_interval is None
        and isinstance(trainer.profiler, PassThroughProfiler)
        and not trainer.fast_dev_run
        and not any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs if config.interval == "step")
        and not any(
            is_overridden(hook, owner, parent=parent) for parent, owner in owners for hook in UNCOVERED_HOOKS[parent]
        )
    )


def _has_one_plain_optimizer(optimizers: list[torch.optim.Optimizer]) -> bool:
    """Return whether there is only one optimizer, which needs no closure."""
    (first, *others) = optimizers
    module = type(first).__module__
    return not others and module.startswith("torch.optim") and not isinstance(first, torch.optim.LBFGS)
