"""Profile a few training steps by torch.profiler: a trace for Perfetto, and a table of the highest costs."""

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile, schedule

from leyden.callbacks.clock import PHASES, StepClock
from leyden.console import say

# steps before the profiler starts, steps that it ignores, and steps that it records
WAIT_STEPS, WARMUP_STEPS, ACTIVE_STEPS = 5, 3, 5
THREAD_ID = 1_000_000  # the phases' thread id in the trace; kernels assign lower ids


class Profile(Callback):
    """Profiles training steps 9 to 13 after a start, in `profile/trace.json.gz` and `profile/table.txt`.

    The names of the files of other ranks end with `-rankN`. The trace has Chrome's format (https://ui.perfetto.dev),
    with a track for the phases of a step. Profiling does not change the training.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "profile"
        self._profiler: profile | None = None
        self._clock: StepClock
        self._suffix = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the profiler, which waits for its first step."""
        self._folder.mkdir(exist_ok=True)
        self._suffix = f"-rank{trainer.global_rank}" if trainer.global_rank else ""
        self._clock = trainer.fit_loop.epoch_loop.clock
        if self._clock.device.type == "cpu":
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler prints that it began and ended
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self._clock.device.type == "cuda")
        steps = schedule(wait=WAIT_STEPS, warmup=WARMUP_STEPS, active=ACTIVE_STEPS, repeat=1)
        self._profiler = profile(activities=activities, schedule=steps, on_trace_ready=self._write)
        self._profiler.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Let the profiler count the step."""
        if self._profiler:
            if self._profiler.step_num + 1 == WAIT_STEPS + WARMUP_STEPS:
                self._clock.start_recording()
            with self._clock.paused():  # writing takes seconds
                self._profiler.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the profiler if training was shorter than the profile."""
        if self._profiler:
            self._profiler.stop()
            if self._profiler:
                say(f"no profile: it takes {WAIT_STEPS + WARMUP_STEPS + 1} steps or more")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the profiler: a process has only one, and a sweep may continue in this process."""
        if self._profiler:
            profiler, self._profiler = self._profiler, None
            profiler.on_trace_ready = None
            profiler.stop()

    def _write(self, profiler: profile) -> None:
        spans, self._profiler = self._clock.stop_recording(), None
        trace_path = self._folder / f"trace{self._suffix}.json.gz"
        uncompressed_path = trace_path.with_suffix("")
        profiler.export_chrome_trace(str(uncompressed_path))
        trace = json.loads(uncompressed_path.read_text())
        uncompressed_path.unlink()
        offset = time.time_ns() - time.perf_counter_ns()  # converts perf_counter_ns to time_ns
        trace["traceEvents"] += _phase_events(spans, offset - trace.get("baseTimeNanoseconds", 0))
        with gzip.open(trace_path, "wt", compresslevel=5) as file:
            json.dump(trace, file)
        table_path = self._folder / f"table{self._suffix}.txt"
        table_path.write_text(_format_table(profiler, spans))
        names = f"profile/{trace_path.name}, for https://ui.perfetto.dev, and profile/{table_path.name}"
        say(f"profile of {ACTIVE_STEPS} steps: {names}")


def _phase_events(spans: list, offset: int) -> list[dict[str, Any]]:
    """Return the phases as trace events of one thread; `offset` converts their nanoseconds to the trace's."""
    thread = {"pid": os.getpid(), "tid": THREAD_ID}
    name = {"ph": "M", "name": "thread_name", **thread, "args": {"name": "step"}}
    phases = [
        {"ph": "X", "cat": "step", "name": phase, **thread, "ts": (began + offset) / 1e3, "dur": (ended - began) / 1e3}
        for phase, began, ended in spans
    ]
    return [name, *phases]


def _format_table(profiler: profile, spans: list) -> str:
    """Format the times of the phases and of the costliest operations, sorted by device time if there is any."""
    steps = max(1, sum(phase == "data" for phase, _, _ in spans))
    totals = {name: sum(end - begin for phase, begin, end in spans if phase == name) for name in PHASES}
    lines = [f"{'phase':18}{'ms per step':>12}", *(f"{n:18}{t / steps / 1e6:12.3f}" for n, t in totals.items() if t)]
    averages = profiler.key_averages()
    has_device_time = any(event.self_device_time_total for event in averages)
    key = "self_device_time_total" if has_device_time else "self_cpu_time_total"
    return "\n".join(lines) + "\n\n" + averages.table(sort_by=key, row_limit=40, max_name_column_width=70) + "\n"
