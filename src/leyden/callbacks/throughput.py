"""The cost of training: samples per second, the time of a step by phase, memory, floating-point operations."""

import resource
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from leyden.callbacks.clock import Phase, StepClock
from leyden.callbacks.flops import FlopCounter, can_count, peak


class Throughput(Callback):
    """Measures the training between two calls of `read`, without validation and checkpoints.

    It must come before all other callbacks. It reads the clock a few times per step, and never waits for the device.
    """

    def __init__(self) -> None:
        self.text = ""  # throughput of the last interval, for the progress bar: 12.3k samples/s
        self._clock = StepClock()
        self._samples = 0  # samples on this rank since the last reading
        self._tokens: Any = 0
        self._step = 0  # step of the last reading
        self._epoch_totals: dict[str, float] = {}  # seconds, samples and tokens of the epoch
        self._counter: FlopCounter | None = None
        self._steps_to_count = 0  # number of steps whose operations are still to be counted
        self._flops: float | None = None  # floating-point operations per step on this rank
        self._peak: float | None = None  # teraflop/s
        self._next_phase: Phase = "other"  # the phase after an optimizer step
        self._hooks = ExitStack()
        self._counter_context = ExitStack()  # holds the counter while a step is counted

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for the model and its device."""
        self._clock = trainer.fit_loop.epoch_loop.clock
        device = self._clock.device = trainer.strategy.root_device
        self._step = trainer.global_step
        # with manual optimization, the forward pass of the next net follows an optimizer's step
        self._next_phase = "other" if pl_module.automatic_optimization else "forward_backward"
        for optimizer in trainer.strategy.optimizers:
            self._hooks.callback(optimizer.register_step_pre_hook(self._before_step).remove)
            self._hooks.callback(optimizer.register_step_post_hook(self._after_step).remove)
        if isinstance(ddp := trainer.strategy.model, DistributedDataParallel):  # DDP times one step of each interval
            ddp._set_ddp_runtime_logging_sample_rate(trainer.log_every_n_steps)
        if trainer.is_global_zero and can_count(pl_module):
            self._counter, self._steps_to_count = FlopCounter(), getattr(pl_module, "cycle", 1)
            convolves = any(isinstance(module, _ConvNd) for module in pl_module.modules())
            self._peak = peak(device, str(trainer.precision), convolves)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the totals of the epoch."""
        self._epoch_totals = dict.fromkeys(("seconds", "samples", "tokens"), 0.0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start timing the forward and backward pass: the batch has been loaded."""
        self._clock.enter("forward_backward")
        if self._steps_to_count and self._counter:
            self._counter_context.enter_context(self._counter)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch."""
        self._clock.enter("other")
        self._samples += num_samples(batch)
        self._tokens = self._tokens + getattr(batch, "num_tokens", 0)
        if self._steps_to_count and self._counter:
            self._counter_context.close()
            self._steps_to_count -= (batch_idx + 1) % trainer.accumulate_grad_batches == 0
            if not self._steps_to_count:
                self._flops = self._counter.total / getattr(pl_module, "cycle", 1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._clock.pause()

    on_train_epoch_end = on_validation_start

    def on_train_end(self, *_: Any) -> None:
        """Remove the optimizer hooks, and stop counting operations."""
        self._hooks.close()
        self._counter_context.close()

    on_exception = on_train_end

    def read(self, trainer: Trainer) -> dict[str, float]:
        """Return the values of the interval since the last reading; empty if there was no step in it.

        Call it when the device has just been synchronised.
        """
        steps, self._step = trainer.global_step - self._step, trainer.global_step
        seconds, shares = self._clock.read()
        samples, tokens = self._samples * trainer.world_size, float(self._tokens) * trainer.world_size
        self._samples, self._tokens = 0, 0
        if steps <= 0 or not seconds:
            return {}
        for name, value in (("seconds", seconds), ("samples", samples), ("tokens", tokens)):
            self._epoch_totals[name] = self._epoch_totals.get(name, 0.0) + value
        self.text = _format_rate(samples, tokens, seconds)
        rates = {"perf/samples_per_s": samples / seconds, "perf/tokens_per_s": tokens / seconds}
        values = {name: rate for name, rate in rates.items() if rate}
        values |= self._phase_times(trainer, 1e3 * seconds / steps, shares)
        values["perf/memory_gb"] = _peak_memory(trainer.strategy.root_device) / 1e9
        if self._flops:
            values["perf/tflops"] = self._flops * steps / seconds / 1e12
            if self._peak:
                values["perf/mfu"] = values["perf/tflops"] / self._peak
        return values

    def epoch_text(self) -> str:
        """Format the throughput of the epoch so far: 12.3k samples/s."""
        return _format_rate(self._epoch_totals["samples"], self._epoch_totals["tokens"], self._epoch_totals["seconds"])

    def _phase_times(self, trainer: Trainer, step: float, shares: dict[Any, float]) -> dict[str, float]:
        """Return the milliseconds of a step and of its phases; the remainder is spent in callbacks and loggers."""
        times = {phase: share * step for phase, share in shares.items() if phase != "other"}
        if isinstance(ddp := trainer.strategy.model, DistributedDataParallel) and times:
            facts = ddp._get_ddp_logging_data()  # ns
            wait_ns = facts.get("backward_comm_time", 0) - facts.get("backward_compute_comm_overlap_time", 0)
            times["communication"] = min(wait_ns / 1e6, times["forward_backward"])
            times["forward_backward"] -= times["communication"]
        elif trainer.world_size == 1 or not times.get("communication"):
            times.pop("communication", None)
        return {"perf/time_step_ms": step, **{f"perf/time_{phase}_ms": time for phase, time in times.items()}}

    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        """Begin the optimizer's phase; Lightning passes it the forward and backward pass as a closure."""
        self._clock.enter("optimizer")
        closure: Callable[[], Any] | None = kwargs.get("closure")
        if closure is None:
            return None

        def timed_closure() -> Any:
            self._clock.enter("forward_backward")
            output = closure()
            self._clock.enter("optimizer")
            return output

        return args, {**kwargs, "closure": timed_closure}

    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        """End the optimizer's phase."""
        self._clock.enter(self._next_phase)


def num_samples(batch: Any) -> int:
    """Return the length of the first tensor in a batch, 0 if there is none."""
    while not isinstance(batch, Tensor):
        if not batch or not isinstance(batch, (tuple, list, dict)):
            return 0
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return len(batch) if batch.ndim else 0


def _peak_memory(device: torch.device) -> float:
    """Return the peak bytes of tensors on the GPU since the last call, or of this process since its start on a CPU."""
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak_bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _format_rate(samples: float, tokens: float, seconds: float) -> str:
    count, unit = (tokens, "tokens") if tokens else (samples, "samples")
    return f"{format_number(count / seconds)} {unit}/s" if count and seconds else ""


def format_number(number: float) -> str:
    """Format a number with three digits: 0.512, 12.3, 123, 12.3k, 1.23M, 1.23G."""
    for unit in ("", "k", "M"):
        if number < 999.5:
            return f"{number:#.3g}".rstrip(".") + unit
        number /= 1000
    return f"{number:#.3g}".rstrip(".") + "G"
