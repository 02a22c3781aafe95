"""Measure the time of a training step by phase, reading the clock a few times per step."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Literal, get_args

import torch

Phase = Literal["data", "forward_backward", "communication", "optimizer", "other"]
PHASES: tuple[Phase, ...] = get_args(Phase)
SAMPLED_STEP = 3  # on a GPU, only this step of each interval is timed by phase: by then the GPU's queue is full again


class StepClock:
    """Adds up the wall time of training by phase. `enter` begins a phase; a step begins with `data`.

    A GPU lags behind the process that queues its work. On a GPU, CUDA events therefore measure the phases of one step
    of each interval, and their shares stand for the whole interval. The total is always wall time.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")  # the device whose work is timed
        self._spans: list[tuple[Phase, int, int]] | None = None
        self._phase: Phase | None = None  # None if paused
        self._phase_start = 0  # ns
        self._durations = dict.fromkeys(PHASES, 0.0)  # ns since the last reading
        self._step = 0  # steps since the last reading
        self._events: list[tuple[Phase, torch.cuda.Event]] = []  # starts of the sampled step's phases, then its end

    def start_recording(self) -> None:
        """Record each phase until `stop_recording`."""
        self._spans = []

    def stop_recording(self) -> list[tuple[Phase, int, int]]:
        """Return the phases since `start_recording` as (phase, begin, end), in nanoseconds of time.perf_counter_ns."""
        spans, self._spans = self._spans or [], None
        return spans

    def enter(self, phase: Phase) -> None:
        """Begin a phase, which ends the previous one or a pause."""
        now, previous = perf_counter_ns(), self._phase
        if previous is not None:
            self._durations[previous] += now - self._phase_start
            if self._spans is not None:
                self._spans.append((previous, self._phase_start, now))
        self._phase, self._phase_start = phase, now
        if self.device.type == "cuda":
            self._mark(phase)

    def pause(self) -> None:
        """Stop the clock until the next `enter`; on CUDA, synchronize the device first."""
        if self._phase is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.enter("other")
        self._phase = None
        if self._step == SAMPLED_STEP:  # the sampled step was interrupted, so this interval has no shares
            self._step += 1
            self._events.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the `with` block."""
        phase = self._phase
        self.pause()
        yield
        if phase is not None:
            self.enter(phase)

    def read(self) -> tuple[float, dict[Phase, float]]:
        """Return the seconds since the last reading, and the share of each phase if it is known.

        The seconds are exact if the device has just been synchronised.
        """
        if self._phase is not None:
            self._durations[self._phase] -= self._phase_start - (now := perf_counter_ns())
            self._phase_start = now
        seconds = sum(self._durations.values()) / 1e9
        durations = self._durations if self.device.type == "cpu" else self._sampled_times()
        total = sum(durations.values())
        self._durations, self._step, self._events = dict.fromkeys(PHASES, 0.0), 0, []
        return seconds, {phase: time / total for phase, time in durations.items()} if total else {}

    def _mark(self, phase: Phase) -> None:
        self._step += phase == "data"
        if self._step == SAMPLED_STEP or (self._step == SAMPLED_STEP + 1 and phase == "data" and self._events):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((phase, event))

    def _sampled_times(self) -> dict[Phase, float]:
        """Return the milliseconds of each phase of the sampled step; empty if the device has not finished it."""
        if self._step <= SAMPLED_STEP or not self._events or not self._events[-1][1].query():
            return {}
        durations = dict.fromkeys(PHASES, 0.0)
        for (phase, begin), (_, end) in zip(self._events, self._events[1:], strict=False):
            durations[phase] += begin.elapsed_time(end)
        return durations
