"""The gain from a second process: samples per second on 1 and on 2 ranks (gloo), in a bare DDP script and in leyden.

Both train the same net with the same optimizer; each rank has `--batch` samples per step, so with perfect scaling the
time of a step stays the same. Ranks are forked from one process and use one thread each; a round runs every variant,
in alternating order; times are wall times of rank 0 between two requests for a batch. `efficiency` is the time of a
step on 1 rank over that on 2; `x bare` is the bare script's time of a step over leyden's. Figures are medians of the
rounds. On shared cores the two ranks wait for each other: compare the columns, not machines.
"""

import argparse
import logging
import os
import socket
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_step
import torch
import torch.distributed as dist
from bench_step import EPOCHS, Loader, optimizer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from leyden.batch import ImageBatch
from leyden.config.compose import compose
from leyden.distributed import ranks
from leyden.distributed.signals import Stop
from leyden.distributed.world import World
from leyden.models.image_classifier import ImageClassifier
from leyden.nets.cnn import ConvNet
from leyden.nets.resnet import SmallResNet
from leyden.run.directory import Run
from leyden.training.assemble import build

NETS: dict[str, Callable[[], nn.Module]] = {
    "convnet": lambda: ConvNet((1, 28, 28), 10),
    "small_resnet": lambda: SmallResNet((1, 28, 28), 10),
}


class WallLoader(Loader):
    """Records the wall-clock time: a rank that waits for another uses no CPU time."""

    def _clock(self) -> float:
        return time.perf_counter()


def bare(net: nn.Module, loader: Loader, world: World, store: Any, folder: Path) -> None:
    """Train as the DDP tutorial does."""
    if world.size > 1:
        dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size)
        net = DistributedDataParallel(net, gradient_as_bucket_view=True)
    bench_step.bare(net, loader, folder)


def leyden(net: nn.Module, loader: Loader, world: World, store: Any, folder: Path) -> None:
    """Train with leyden's default configuration, with its logging, progress, heartbeat and checkpoints."""
    overrides = ["data=digits", f"trainer.max_epochs={EPOCHS}", "name=bench", f"trainer.devices={world.size}"]
    composition = compose([*overrides, "accelerator=cpu_ddp"])
    run = Run.create(composition, folder / str(world.rank))
    if world.size > 1:
        ranks.join(world, store, run.config)
    with Stop() as stop:
        parts = build(run, run.config, stop)
        model = ImageClassifier(net, 10, lambda groups: optimizer(p for g in groups for p in g["params"]))
        parts.trainer.fit(model, loader)
    assert parts.trainer.fit_loop.epoch_loop.tight


def measure(
    variant: Callable[..., None], make_net: Callable[[], nn.Module], size: int, batch: ImageBatch, steps: int
) -> float:
    """Return the microseconds per step on a number of forked ranks."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        pids = [
            _fork(
                variant,
                make_net,
                World(r, r, size, size, "leyden", *listener.getsockname()),
                listener,
                batch,
                steps,
                Path(folder),
            )
            for r in range(size)
        ]
        exit_codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        if any(exit_codes):
            raise RuntimeError(f"{variant.__name__} on {size} ranks failed: {exit_codes}")
        return float((Path(folder) / "seconds").read_text()) / steps * 1e6


def _fork(
    variant: Callable[..., None],
    make_net: Callable[[], nn.Module],
    world: World,
    listener: socket.socket,
    batch: ImageBatch,
    steps: int,
    folder: Path,
) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        with Path(os.devnull).open("w") as null_file:
            os.dup2(null_file.fileno(), 1)
        world.set_environ()
        torch.manual_seed(0)
        loader = WallLoader(batch, steps)
        variant(make_net(), loader, world, ranks.open_store(world, listener if world.rank == 0 else None), folder)
        if world.rank == 0:
            (folder / "seconds").write_text(str(loader.seconds))
        code = 0
    finally:
        os._exit(code)


def main(argv: list[str]) -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench scale", description=__doc__)
    parser.add_argument("--net", choices=NETS, default="convnet")
    parser.add_argument("--batch", type=int, default=128, help="samples per rank")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    batch = ImageBatch(torch.rand(options.batch, 1, 28, 28), torch.randint(10, (options.batch,)))
    cases = [(variant, size) for variant in (bare, leyden) for size in (1, 2)]
    times: dict[tuple[str, int], list[float]] = {(variant.__name__, size): [] for variant, size in cases}
    for number in range(options.rounds):
        for variant, size in cases if number % 2 else reversed(cases):
            times[variant.__name__, size].append(measure(variant, NETS[options.net], size, batch, options.steps))
    print(f"{'':8}{'us/step, 1 rank':>17}{'2 ranks':>10}{'efficiency':>12}{'x bare, 1':>11}{'2':>7}")
    for name in ("bare", "leyden"):
        one, two = times[name, 1], times[name, 2]
        efficiency = statistics.median(a / b for a, b in zip(one, two, strict=True))
        to_bare = [
            statistics.median(b / t for b, t in zip(times["bare", s], times[name, s], strict=True)) for s in (1, 2)
        ]
        print(
            f"{name:8}{statistics.median(one):17.0f}{statistics.median(two):10.0f}{efficiency:12.2f}{to_bare[0]:11.2f}{to_bare[1]:7.2f}"
        )
