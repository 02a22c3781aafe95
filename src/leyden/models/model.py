"""The base of the models: a net, its optimizer and schedule, the stages of a run, and logging without host syncs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from lightning import Callback, LightningModule
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torchmetrics import Metric

from leyden.contracts import AnimationLogger, FigureLogger, ImageLogger, TextLogger
from leyden.errors import UserError
from leyden.figures import plots
from leyden.metrics.meters import Meters
from leyden.models import parameter_groups as groups
from leyden.schema.schema import Schema

OptimizerCallable = Callable[..., Optimizer]  # called with the parameters
ScheduleCallable = Callable[..., LRScheduler]  # called with the optimizer and `total_steps`


class Model(LightningModule):
    """A net with its optimizer and schedule.

    `optimizer` is called with the parameters, `schedule` with the optimizer and `total_steps`, the number of
    optimizer steps of the whole fit. `parameter_groups` set rates and other arguments of the optimizer for parameters
    by their names, and freeze some (`leyden.models.parameter_groups.ParameterGroup`). A subclass sets `monitor`, the
    metric and direction that choose the best checkpoint, and logs every value as `stage/name`.
    """

    monitor: tuple[str, str] | None = None  # for instance ("val/accuracy", "max")
    lockstep: ClassVar[bool] = True  # whether every rank calls the net equally often, and only by net(…)

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable,
        schedule: ScheduleCallable | None = None,
        parameter_groups: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.parameter_groups = groups.parse(parameter_groups)
        self.meters = Meters()
        self._optimizer = optimizer
        self._schedule = schedule
        self._schema: Schema | None = None

    @property
    def schema(self) -> Schema | None:
        """The schema of samples and answers: the one that was set, else that of the data; None if there is none."""
        if self._schema is None and self._trainer is not None:
            return getattr(self.trainer.datamodule, "schema", None)
        return self._schema

    @schema.setter
    def schema(self, schema: Schema | None) -> None:
        self._schema = schema

    def configure_optimizers(self) -> Any:
        """Build the optimizer over the trainable parameters, and its schedule in steps."""
        optimizer, scheduler = self.build_optimizer(self.parameters())
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def build_optimizer(
        self, parameters: Iterable[nn.Parameter], *, lr_ratio: float = 1.0, period: int = 1
    ) -> tuple[Optimizer, LRScheduler | None]:
        """Build an optimizer that steps on every `period`-th batch with `lr_ratio` times the rate, and its schedule.

        Vectors and scalars (biases, the scales of norms) have no weight decay, unless a parameter group sets one.

        Raises:
            UserError: if the optimizer refuses an argument, a parameter group does not suit the model, the schedule
                needs an unknown number of steps, or it does not keep the ratios of the rates.
        """
        groups.check_callback(self.parameter_groups, self)
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        trainable = [(names.get(id(p), ""), p) for p in parameters if p.requires_grad]
        torch_groups, ratios = groups.split(trainable, self.parameter_groups, self)
        optimizer = self._make_optimizer(torch_groups)
        ratios = [lr_ratio * ratio for ratio in ratios]
        if (num_groups := len(optimizer.param_groups)) != len(ratios):  # the optimizer has made groups of its own
            if len({*ratios}) > 1:
                raise UserError(
                    f"{type(optimizer).__name__} makes parameter groups of its own, whose learning rates cannot have "
                    "the ratios of model.parameter_groups: leave out lr_ratio and lr_decay"
                )
            ratios = ratios[:1] * num_groups
        _multiply_rates(optimizer, ratios, ("lr",))
        if self._schedule is None:
            return optimizer, None
        total_steps = self.trainer.estimated_stepping_batches
        if total_steps == float("inf"):
            raise UserError("schedule needs to know the number of steps: set trainer.max_epochs, or schedule=constant")
        scheduler = self._make_schedule(self._schedule, optimizer, -(-int(total_steps) // period))
        if isinstance(scheduler, OneCycleLR):  # it replaces all rates by one max_lr
            _multiply_rates(optimizer, ratios, ("lr", "initial_lr", "max_lr", "min_lr"))
        _check_rates(optimizer, ratios, scheduler)
        return optimizer, scheduler

    def check_optimizer(self) -> None:
        """Build the optimizer and its schedule for one matrix, so that a wrong argument is reported before the fit.

        Raises:
            UserError: for an argument that they do not accept, or a parameter group that does not suit the model.
        """
        optimizer = self._make_optimizer([{"params": [nn.Parameter(torch.zeros(2, 2))]}])
        if self._schedule is not None:
            self._make_schedule(self._schedule, optimizer, 1000)
        groups.check(self.parameter_groups, self)
        groups.check_arguments(self.parameter_groups, optimizer)

    @property
    def trains_some_later(self) -> bool:
        """Whether a parameter group is frozen until an epoch."""
        return any(group.freeze is not True and group.freeze for group in self.parameter_groups)

    def on_initial_weights(self) -> None:
        """Do what follows from weights that `init` has loaded; a model that holds copies of its weights copies them."""

    def configure_callbacks(self) -> list[Callback]:
        """Return the callback that freezes parameter groups."""
        return [groups.Freezing(self.parameter_groups)] if self.parameter_groups else []

    def _make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        try:
            return self._optimizer(groups)
        except ValueError as error:  # a negative learning rate, for instance
            raise UserError(f"optimizer: {error}") from error

    def _make_schedule(self, schedule: ScheduleCallable, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        try:
            return schedule(optimizer, total_steps=total_steps)
        except (TypeError, ValueError) as error:  # a share above one, or a schedule without `total_steps`
            hint = ": leyden passes it, and steps a schedule after every batch" if "'total_steps'" in str(error) else ""
            raise UserError(f"schedule: {error}{hint}") from error

    def _reset(self) -> None:
        """Reset the metrics; a subclass with metrics overrides this."""

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        self._reset()

    on_test_epoch_start = on_sanity_check_end = on_validation_epoch_start

    def log(self, name: str, value: Any, *, batch_size: int | None = None, **kwargs: Any) -> None:
        """Log a value, or a torchmetrics object.

        Values named `train/…` are summed on the device, weighted by `batch_size`: loggers get the mean over each
        `trainer.log_every_n_steps`, and callbacks the mean over the epoch. Lightning logs all other values.
        """
        if name.startswith("train/") and not kwargs and isinstance(value, Tensor | float | int):
            self.meters.add(name, value, batch_size or 1)
        else:
            super().log(name, value, batch_size=batch_size, **kwargs)

    @property
    def logged_step(self) -> int:
        """The step that logged values belong to; in a test after training, that of the tested checkpoint."""
        return self.trainer.fit_loop.epoch_loop._batches_that_stepped

    def log_figure(self, name: str, draw: Callable[[], Any]) -> None:
        """Log the figure that `draw` returns; it replaces the last figure of this name.

        `draw` returns a matplotlib figure or uint8 pixels (H, W) or (H, W, 3), and is called only if a logger takes
        figures.
        """
        if loggers := _loggers(self, FigureLogger):
            figure = _draw_figure(draw)
            for logger in loggers:
                logger.log_figure(name, figure, self.logged_step)

    def log_image(self, name: str, draw: Callable[[], np.ndarray]) -> None:
        """Log the uint8 pixels (H, W) or (H, W, 3) that `draw` returns as the next frame of the animation `name`."""
        if loggers := _loggers(self, ImageLogger):
            pixels = _draw_figure(draw)
            for logger in loggers:
                logger.log_image(name, pixels, self.logged_step)

    def log_animation(self, name: str) -> None:
        """Send the animation `name` to the loggers that take animations; call it once, at the end."""
        for logger in _loggers(self, AnimationLogger):
            logger.log_animation(name, self.logged_step)

    def log_text(self, name: str, text: str) -> None:
        """Log a text to the loggers that take texts."""
        for logger in _loggers(self, TextLogger):
            logger.log_text(name, text, self.logged_step)


class EvaluatedModel(Model):
    """A model that updates its metrics with every batch of validation and test, and logs them over the whole split.

    `metrics` are torchmetrics objects by name. A subclass calls `measure` in `validation_step` and `test_step` with
    predictions and targets, and each is logged under its name, reduced over all ranks. For other metrics, a
    subclass defines `_update_scores`, which updates them with a batch, `_scores`, which computes them, and `_reset`.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerCallable,
        schedule: ScheduleCallable | None = None,
        metrics: dict[str, Metric] | None = None,
        parameter_groups: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(net, optimizer, schedule, parameter_groups)
        metrics = metrics or {}
        for name, metric in metrics.items():
            if not isinstance(metric, Metric):
                raise UserError(
                    f"model.metrics.{name} builds a {type(metric).__name__}; it must be a torchmetrics.Metric"
                )
        self._metric_names, self._metrics = list(metrics), nn.ModuleList(metrics.values())

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        for metric in self._metrics:
            metric.reset()
        self._reset()

    on_test_epoch_start = on_sanity_check_end = on_validation_epoch_start

    def measure(self, *arguments: Any) -> None:
        """Update the `metrics` of the config, as `metric.update(*arguments)`; predictions come first, then targets.

        Raises:
            UserError: if one of the metrics does not take these arguments.
        """
        for name, metric in zip(self._metric_names, self._metrics, strict=True):
            try:
                metric.update(*arguments)
            except (TypeError, ValueError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                shapes = " and ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else str(x)[:60] for x in arguments)
                reason = " ".join(str(error).split())
                raise UserError(
                    f"model.metrics.{name}: {type(metric).__name__} does not take {shapes}: {reason}"
                ) from error

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Update the metrics with the batch."""
        self._update_scores(batch)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the whole split."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores of the whole split."""
        self._log_scores("test")

    def _update_scores(self, batch: Any) -> Any:
        """Update the metrics with a batch."""
        raise NotImplementedError

    def _scores(self) -> dict[str, Any]:
        """Return the scores over all batches and ranks, by name without the stage."""
        return {}

    def _log_scores(self, stage: str) -> None:
        scores = self._scores()
        for name, metric in zip(self._metric_names, self._metrics, strict=True):
            value = metric.compute()  # torchmetrics reduces over all ranks
            if name in scores:
                raise UserError(f"model.metrics.{name}: the model logs {name} itself; take another name")
            if not isinstance(value, Tensor) or value.numel() != 1:
                kind = f"values {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                raise UserError(f"model.metrics.{name}: {type(metric).__name__} computes {kind}; it must be one number")
            scores[name] = value
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()}, sync_dist=True)


MODELS_BY_ANSWER = {"classes": "Classifier, ImageClassifier", "labels": "MultiLabelClassifier", "number": "Regressor"}


def check_answer(model: Model, kind: str) -> None:
    """Raise a UserError if the data's answers are of another kind than the model's."""
    field = model.schema and model.schema.answer
    if field and field.kind != kind and field.kind in MODELS_BY_ANSWER:
        name, models = type(model).__name__, MODELS_BY_ANSWER[field.kind]
        raise UserError(f"{name} answers by {kind}, but the data's answers are {field.kind}: use one of {models}")


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Put a net into eval mode, and each of its modules back into its former mode at the end of the block."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all ranks, sent by pickle; a collective that every rank must call."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


# These are functions, because a subclass may have methods with these names.


def _multiply_rates(optimizer: Optimizer, ratios: list[float], keys: tuple[str, ...]) -> None:
    """Multiply the rates of an optimizer's parameter groups, each by its own ratio."""
    for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
        for key in keys if ratio != 1 else ():
            group[key] *= ratio
            group["lr_ratio"] = ratio  # read by `leyden find lr`


def _check_rates(optimizer: Optimizer, ratios: list[float], scheduler: LRScheduler) -> None:
    """Refuse a schedule that gives all parameter groups the same rate although their ratios differ."""
    rates = [group["lr"] / ratio for group, ratio in zip(optimizer.param_groups, ratios, strict=True)]
    if len({*ratios}) > 1 and max(rates) - min(rates) > 1e-6 * max(rates):
        raise UserError(
            f"schedule: {type(scheduler).__name__} does not keep the ratios of learning rates (lr_ratio, lr_decay): "
            "choose schedule=cosine, onecycle or constant"
        )


def _loggers(model: Model, kind: type) -> list[Any]:
    """Return the loggers of a kind on rank 0, which alone draws, and none on other ranks."""
    loggers = [logger for logger in model.loggers if isinstance(logger, kind)]
    return loggers if loggers and model.trainer.is_global_zero else []


def _draw_figure(draw: Callable[[], Any]) -> Any:
    figure = draw()
    return plots.finish_layout(figure) if isinstance(figure, plots.Figure) else figure


def float32_at_least(x: Tensor) -> Tensor:
    """Return x in the precision of a loss: float64 stays, half precision becomes float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
