"""The cost of starting: `import lightning` alone, a first training step, a grid of four such jobs, a refused override.

Each command runs in turn, in every round; figures are the median CPU seconds of the process and its children,
and the ratio to `import lightning` of the same round.
"""

import argparse
import contextlib
import ctypes
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LEYDEN = [sys.executable, "-m", "leyden.cli"]
TEMPLATE = [sys.executable, str(Path(__file__).with_name("template.py"))]
FIRST_STEP = ["train", "experiment=cnn_digits", "trainer.max_steps=1", "test=false", "expect=null"]
PR_SET_CHILD_SUBREAPER = 36  # of Linux: processes whose parent has ended become children of this one
GRID = ["-m", "seed=0,1,2,3"]
COMMANDS = {
    "import lightning": [sys.executable, "-c", "import lightning"],
    "first training step": [*LEYDEN, *FIRST_STEP],
    "that of a template": [*TEMPLATE, "trainer.max_steps=1"],
    "grid of four steps": [*LEYDEN, *FIRST_STEP, *GRID],
    "that of a template, -m": [*TEMPLATE, *GRID, "trainer.max_steps=1"],
    "refused override": [*LEYDEN, "train", "trainer.max_epohcs=5"],
    "leyden check": [*LEYDEN, "check"],
    "leyden --help": [*LEYDEN, "--help"],
    "python": [sys.executable, "-c", "pass"],
}


def measure_seconds(command: list[str], folder: str) -> float:
    """Run a command in a new folder; return the CPU seconds that it and its processes took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run(command, cwd=folder, capture_output=True, env={**os.environ, "LEYDEN_DEBUG": "0"}).returncode
    if code != (2 if "trainer.max_epohcs=5" in command else 0):
        sys.exit(f"{' '.join(command)} ended with {code}")
    with contextlib.suppress(ChildProcessError):
        while True:  # the processes that a sweep leaves behind when it ends
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(argv: list[str]) -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(argv).rounds
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            with tempfile.TemporaryDirectory() as folder:
                times[name].append(measure_seconds(command, folder))
    base = times["import lightning"]
    print(f"{'':22}{'CPU s':>8}{'x import lightning':>22}")
    for name, values in times.items():
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        print(f"{name:22}{statistics.median(values):8.2f}{ratio:22.2f}")
    for ours, theirs in (
        ("first training step", "that of a template"),
        ("grid of four steps", "that of a template, -m"),
    ):
        ratio = statistics.median(a / b for a, b in zip(times[ours], times[theirs], strict=True))
        print(f"{ours} / {theirs}: {ratio:.2f}")
