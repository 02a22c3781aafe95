"""Measure the throughput of doubled batch sizes until one does not fit or, on a CPU, training gets no faster."""

import gc
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from typing_extensions import override

from leyden.callbacks.throughput import Throughput
from leyden.config import compose
from leyden.config.composition import Composition, value_at
from leyden.config.locations import in_project_folder
from leyden.distributed.world import num_devices
from leyden.errors import UserError
from leyden.training import probe
from leyden.training.assemble import build_learner

WARMUP_STEPS, MIN_SECONDS, MIN_STEPS, MAX_STEPS = 3, 1.0, 3, 50  # steps before timing, and limits of the timed part
MIN_SPEEDUP = 1.05  # a size is faster if its throughput is this many times that of smaller ones
GOOD_ENOUGH = 0.95  # a size is suggested if it reaches this share of the best throughput


class Stopwatch(Callback):
    """Ends a training after enough timed steps."""

    def __init__(self, throughput: Throughput) -> None:
        self.values: dict[str, float] = {}
        self._throughput = throughput
        self._start_time = 0.0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the measurement after the warm-up; read the throughput and stop after enough steps."""
        steps = trainer.global_step - WARMUP_STEPS
        if steps < 0:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        now = time.monotonic()
        if steps == 0:
            self._throughput.read(trainer)
            self._start_time = now
        elif steps == MAX_STEPS or (steps >= MIN_STEPS and now - self._start_time > MIN_SECONDS):
            self.values = self._throughput.read(trainer)
            trainer.should_stop = True


class Measurement(NamedTuple):
    """The cost of training with a batch size; both the size and the throughput are totals over all ranks."""

    batch_size: int
    samples_per_s: float = 0.0
    step_ms: float = 0.0
    memory_gb: float = 0.0
    failure: str = ""  # the reason why training with this size failed, in which case nothing was measured
    fits: bool = True  # whether it fits into memory


def measure_sizes(composition: Composition, low: float, high: float | None) -> Iterator[Measurement]:
    """Measure batch sizes from `low` samples per device on: double them while they fit and get faster, then bisect.

    Raises:
        UserError: if the data has no batch size, or training fails with the first size.
    """
    if value_at(composition.config, "data.batch_size") is None:
        raise UserError(f"data has no batch_size to vary: {composition.config['data'].get('_target_', 'data=none')}")
    ranks = num_ranks(composition.config["trainer"])
    speeds: dict[int, float] = {}  # samples/s of the sizes on one device that fit

    def measure_size(size: int) -> Measurement:
        values = measure(composition, size)
        if values is None:
            return Measurement(size * ranks, failure="does not fit into memory", fits=False)
        speeds[size] = values["perf/samples_per_s"]
        costs = speeds[size] * ranks, values["perf/time_step_ms"], values["perf/memory_gb"]
        return Measurement(size * ranks, *costs)

    size, too_large = int(low), None
    while too_large is None and (high is None or size * ranks <= high) and not has_levelled_off(speeds, composition):
        try:
            measurement = measure_size(size)
        except UserError as error:  # most likely more samples than the data has
            if not speeds:
                raise
            yield Measurement(size * ranks, failure=str(error))
            break
        too_large = None if measurement.fits else size
        yield measurement
        size *= 2
    if not speeds:
        raise UserError(f"data.batch_size={size // 2 * ranks} does not fit into memory: set accumulate, or lower --min")
    largest = max(speeds)
    while too_large and too_large - largest > max(1, largest // 8):
        middle = (largest + too_large) // 2
        measurement = measure_size(middle)
        if measurement.fits:
            largest = middle
        else:
            too_large = middle
        yield measurement


@in_project_folder()
def measure(composition: Composition, size: int) -> dict[str, float] | None:
    """Train some steps on batches of `size` samples on one device; return the values of `Throughput.read`.

    Return None if the batches do not fit into memory.
    """
    one_device = ["+trainer.devices=1", "+trainer.num_nodes=1"]  # enough to tell what fits and how fast it is
    config = compose.override(composition.raw, [f"data.batch_size={size}", *one_device]).config
    throughput = Throughput()
    stopwatch = Stopwatch(throughput)
    try:
        model, data = build_learner(config)
        probe.fit(model, data, config, WARMUP_STEPS + MAX_STEPS, [throughput, stopwatch])
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not is_oom_error(error):
            raise
        return None
    finally:
        gc.collect()
        garbage_collection_cuda()
    return stopwatch.values


def num_ranks(trainer: dict[str, Any]) -> int:
    """Return how many devices a config trains on, assuming that every node has as many as this one."""
    devices = num_devices(trainer.get("devices", 1), trainer.get("accelerator", "cpu"))
    return max(1, devices) * trainer.get("num_nodes", 1)


def has_levelled_off(speeds: dict[int, float], composition: Composition) -> bool:
    """Return whether the last two doublings made training no faster; False on a GPU, where sizes soon stop fitting."""
    ordered_speeds = [speeds[size] for size in sorted(speeds)]
    if composition.config["trainer"].get("accelerator") != "cpu" or len(ordered_speeds) < 3:
        return False
    return max(ordered_speeds[-2:]) < MIN_SPEEDUP * max(ordered_speeds[:-2])


def suggest(speeds: dict[int, float]) -> int:
    """Return the smallest size whose throughput is near the best."""
    return min(size for size, speed in speeds.items() if speed >= GOOD_ENOUGH * max(speeds.values()))
