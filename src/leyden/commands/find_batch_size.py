"""Batch size against throughput: doubled until it does not fit, or on a CPU until it is no faster."""

import gc
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error

from leyden.callbacks.throughput import Throughput, short
from leyden.commands.find import save
from leyden.config.check import Composition, at
from leyden.config.compose import override
from leyden.console import put
from leyden.errors import UserError
from leyden.figures import plots
from leyden.training import probe
from leyden.training.assemble import build_learner

WARM, SECONDS, FEWEST, MOST = 3, 1.0, 3, 50  # steps before the clock starts; the least time and steps, the most steps
GAIN = 1.05  # what counts as faster
NEAR = 0.95  # of the best throughput is good enough


class Stopwatch(Callback):
    """Ends a training when enough steps were timed."""

    def __init__(self, throughput: Throughput) -> None:
        self.values: dict[str, float] = {}
        self._throughput = throughput
        self._began = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the throughput after the first steps, and when there were enough."""
        steps = trainer.global_step - WARM
        if steps < 0:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        now = time.monotonic()
        if steps == 0:
            self._throughput.read(trainer)
            self._began = now
        elif steps == MOST or (steps >= FEWEST and now - self._began > SECONDS):
            self.values = self._throughput.read(trainer)
            trainer.should_stop = True


def find(composition: Composition, folder: Path, low: float, high: float | None) -> int:
    """Try sizes from `low` samples a device on; suggest the smallest that is nearly as fast as any."""
    if at(composition.config, "data.batch_size") is None:
        raise UserError(f"data has no batch_size to vary: {composition.config['data']['_target_']}")
    ranks = num_ranks(composition.config["trainer"])
    if ranks > 1:
        print(f"measured on one device; batch sizes and throughput are those of {ranks}, without their talk")
    trials: dict[int, dict[str, float]] = {}

    def fits(size: int) -> bool:
        values = measure(composition, size)
        if values is None:
            print(f"{size * ranks:10}  does not fit into memory")
            return False
        if not trials:
            print(f"{'batch_size':>10}{'samples/s':>12}{'ms/step':>10}{'GB':>8}")
        samples = values["perf/samples_per_s"] * ranks
        trials[size] = {"samples_per_s": samples, "step_ms": values["perf/time_step_ms"]}
        trials[size]["memory_gb"] = values["perf/memory_gb"]
        print(f"{size * ranks:10}{short(samples):>12}{trials[size]['step_ms']:10.3g}{values['perf/memory_gb']:8.3g}")
        return True

    size, failed = int(low), None
    while failed is None and (high is None or size * ranks <= high) and not levelled_off(trials, composition):
        try:
            failed = None if fits(size) else size
        except UserError as error:  # more samples than there are, most likely
            if not trials:
                raise
            put(f"{size * ranks:10}  {error}")
            break
        size *= 2
    if not trials:
        raise UserError(f"data.batch_size={size // 2 * ranks} does not fit into memory: set accumulate, or lower --min")
    largest = max(trials)
    while failed and failed - largest > max(1, largest // 8):
        middle = (largest + failed) // 2
        if fits(middle):
            largest = middle
        else:
            failed = middle
    rows = [{"batch_size": size * ranks, **trials[size]} for size in sorted(trials)]
    suggestion = suggest({row["batch_size"]: row["samples_per_s"] for row in rows})
    facts = {"sizes": rows, "largest": rows[-1]["batch_size"], "fits_no_more": failed and failed * ranks}
    figure = plots.batch_sizes([row["batch_size"] for row in rows], [row["samples_per_s"] for row in rows], suggestion)
    save(folder, "batch_size", composition, figure, {**facts, "suggestion": suggestion})
    print(f"the smallest within {100 * (1 - NEAR):.0f} % of the best throughput: data.batch_size={suggestion}")
    return 0


def measure(composition: Composition, size: int) -> dict[str, float] | None:
    """Train some steps on batches of `size`; return what they cost, None if they do not fit into memory."""
    one = ["+trainer.devices=1", "+trainer.num_nodes=1"]  # what fits and how fast it is, one device tells
    changed = override(composition.raw, [f"data.batch_size={size}", *one]).config
    throughput = Throughput()
    stopwatch = Stopwatch(throughput)
    try:
        model, data = build_learner(changed)
        probe.fit(model, data, changed, WARM + MOST, [throughput, stopwatch])
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not is_oom_error(error):
            raise
        return None
    finally:
        gc.collect()
        garbage_collection_cuda()
    return stopwatch.values


def num_ranks(trainer: dict) -> int:
    """Return how many devices a config trains on, were the other nodes like this one."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, list):
        devices = len(devices)
    elif str(devices) in ("auto", "-1"):
        devices = torch.cuda.device_count() if trainer.get("accelerator") in ("gpu", "cuda", "auto") else 1
    return max(1, int(devices)) * trainer.get("num_nodes", 1)


def levelled_off(trials: dict[int, dict[str, float]], composition: Composition) -> bool:
    """Tell whether two doublings on a CPU, which has no memory to fill, made nothing faster."""
    speeds = [trials[size]["samples_per_s"] for size in sorted(trials)]
    if composition.config["trainer"].get("accelerator") != "cpu" or len(speeds) < 3:
        return False
    return max(speeds[-2:]) < GAIN * max(speeds[:-2])


def suggest(speeds: dict[int, float]) -> int:
    """Return the smallest size whose throughput is near the best."""
    return min(size for size, speed in speeds.items() if speed >= NEAR * max(speeds.values()))
