"""The cost of a sweep per job with leyden's sweeper and Hydra's basic one: for a run of one step, and for an empty job.

CPU is the cost of one more job for the sweep's own process: the difference between sweeps of few and of more jobs,
because the page that leyden writes at the end costs the same in both. Hydra's sweeper also trains in that process,
which is subtracted. Gap is the median time from the end of a job to the start of the next. Both sweepers run in turn,
and ratios compare values of the same round.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from leyden.config.locations import CONF

SWEEPERS = ("leyden", "basic")
ONE_STEP_RUN = ["experiment=cnn_digits", "data.limit=64", "trainer.max_epochs=1", "test=false", "expect=null"]
PRINT_CPU = """
    import resource
    usage = resource.getrusage(resource.RUSAGE_SELF)  # of this process, without its children
    print(f"CPU {usage.ru_utime + usage.ru_stime}")
"""
EMPTY_JOB = f"""
import time, hydra
@hydra.main(version_base=None, config_path=None)
def application(config):
    with open("times", "a") as file:
        file.write(f"{{time.time()}} ")
    return 0.0
if __name__ == "__main__":
    application()
{PRINT_CPU}"""
TRAIN = f"""
if __name__ == "__main__":  # jobs read this file again
    import sys
    from leyden import cli
    assert cli.main(sys.argv[1:]) == 0
{PRINT_CPU}"""


class Cost(NamedTuple):
    """The CPU seconds of a sweep's process without training, and the seconds between its jobs."""

    cpu: float
    gaps: list[float]


def sweep(kind: str, sweeper: str, jobs: int, folder: Path) -> Cost:
    """Measure one sweep, whose jobs run one at a time."""
    seeds = f"seed={','.join(map(str, range(jobs)))}"
    options = [f"hydra/sweeper={sweeper}", f"hydra.sweep.dir={folder}/sweep"]
    if kind == "nothing":
        search = f"hydra.searchpath=[file://{CONF}]"
        arguments = ["-m", search, *options, f"+{seeds}", "hydra/job_logging=none", "hydra/hydra_logging=none"]
    else:
        arguments = ["train", "-m", *ONE_STEP_RUN, *options, seeds]
    program = folder / "program.py"
    program.write_text(EMPTY_JOB if kind == "nothing" else TRAIN)
    process = subprocess.run([sys.executable, program, *arguments], cwd=folder, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{sweeper}, {kind}: {process.stdout[-500:]}{process.stderr[-1000:]}")
    cpu = float(process.stdout.rpartition("CPU ")[2])
    if kind == "nothing":
        times = [float(line) for line in (folder / "times").read_text().split()]
        return Cost(cpu, [later - before for before, later in itertools.pairwise(times)])
    paths = sorted(folder.glob("sweep/*/status.json"), key=lambda path: int(path.parent.name))
    runs = [json.loads(path.read_text()) for path in paths]
    assert len(runs) == jobs
    assert all(run["state"] == "finished" for run in runs)
    training_cpu = sum(run["cpu_seconds"] for run in runs) if sweeper == "basic" else 0.0
    gaps = [later["started"] - before["heartbeat"] for before, later in itertools.pairwise(runs)]
    return Cost(cpu - training_cpu, gaps)


def per_job(kind: str, sweeper: str, few_jobs: int, many_jobs: int) -> tuple[float, float]:
    """Return the CPU seconds that a job adds, and the median gap."""
    costs = []
    for jobs in (few_jobs, many_jobs):
        with tempfile.TemporaryDirectory() as folder:
            costs.append(sweep(kind, sweeper, jobs, Path(folder)))
    return (costs[1].cpu - costs[0].cpu) / (many_jobs - few_jobs), statistics.median(costs[1].gaps)


def main(argv: list[str]) -> None:
    """Run the rounds and print the tables."""
    parser = argparse.ArgumentParser(prog="scripts/bench sweep", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--jobs", type=int, nargs=2, default=(6, 14), help="jobs of the smaller and of the larger sweeps"
    )
    options = parser.parse_args(argv)
    for kind, title in (("nothing", "a job that does nothing"), ("run", "a run of one step on digits")):
        costs: dict[str, list[tuple[float, float]]] = {sweeper: [] for sweeper in SWEEPERS}
        for number in range(options.rounds):
            for sweeper in SWEEPERS if number % 2 else reversed(SWEEPERS):
                costs[sweeper].append(per_job(kind, sweeper, *options.jobs))
        print(f"{title:32}{'CPU s per job':>16}{'gap s':>10}")
        for sweeper, rounds in costs.items():
            cpu, gap = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(f"  {sweeper:30}{cpu:16.3f}{gap:10.3f}")
        pairs = list(zip(costs["leyden"], costs["basic"], strict=True))
        cpu, gap = (statistics.median(ours[column] / theirs[column] for ours, theirs in pairs) for column in (0, 1))
        print(f"  {'leyden / basic':30}{cpu:16.2f}{gap:10.2f}", flush=True)
