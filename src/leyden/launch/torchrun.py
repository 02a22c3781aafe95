"""Ranks that torchrun, srun or mpirun has started: rank 0 runs the command, the others join in its runs."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leyden.distributed.signals import Interrupted, Stop
from leyden.distributed.world import World, detect_world
from leyden.launch.work import work
from leyden.run.directory import Run

PATIENCE = 60.0  # seconds that an interrupted rank waits for rank 0 to end
_roster: Any = None  # a `leyden.distributed.ranks.Roster`, once it was needed


def roster(world: World) -> Any:
    """Return the connection to the ranks that torchrun, srun or mpirun made."""
    global _roster
    if _roster is None:
        from leyden.distributed import ranks

        world.enter()
        _roster = ranks.Roster(world)
    return _roster


def run_before_restart() -> Path | None:
    """Return the run that this command had started before torchrun restarted its ranks."""
    world = detect_world()
    return roster(world).run_before_restart() if world and world.starter == "torchrun" else None


def follow_rank_0(world: World) -> int:
    """Be a rank other than 0: work on every run that rank 0 calls for; return the exit code."""
    jobs = roster(world).jobs()
    with Stop():  # owns the signals between two runs
        while True:
            try:
                path, config, store = next(jobs)
            except StopIteration as done:
                return done.value
            try:
                work(Run(path), config, world, store)
            except Interrupted:
                _await_dismissal(jobs)
                raise


def _await_dismissal(jobs: Iterator[Any]) -> None:
    """Stay until rank 0 has closed its loggers, because srun and torchrun end all ranks when one ends."""
    from leyden.distributed import ranks

    ranks.leave()  # so that nobody waits for this rank
    watch = threading.Thread(target=next, args=(jobs, None), daemon=True)
    watch.start()
    watch.join(PATIENCE)


def dismiss_ranks(world: World, exit_code: int) -> None:
    """Tell the other ranks that there is no more to do."""
    roster(world).dismiss(exit_code)
