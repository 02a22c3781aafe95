"""Make random numbers a function of the seed and the step, independent of what was drawn before."""

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from typing_extensions import override

_MPS = torch.backends.mps.is_available()


@lru_cache
def _base_seed(seed: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])


def seed_everything(seed: int, step: int = 0, rank: int = 0) -> None:
    """Seed torch (CPU, CUDA, MPS), numpy and random from three numbers.

    On a CPU, `torch.manual_seed` would take 20 times as long.
    """
    mixed_seed = (_base_seed(seed, rank) + step * 0x9E3779B1) & 0xFFFFFFFF  # a Weyl sequence of period 2**32
    torch.default_generator.manual_seed(mixed_seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(mixed_seed)
    elif _MPS:
        torch.mps.manual_seed(mixed_seed)
    np.random.seed(mixed_seed)
    random.seed(mixed_seed)


@contextmanager
def temporary_seed(seed: int) -> Iterator[None]:
    """Seed all generators within the block, and restore those of the CPU at its end."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed_everything(seed)
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


class LoaderSource(_DataLoaderSource):
    """Gets the loaders of a module or data module with random numbers that depend on seed, hook and epoch alone.

    A hook such as `train_dataloader` may draw its data at random, and must draw the same data in a resumed run, which
    calls it at another time.
    """

    def __init__(self, trainer: Trainer, name: str, seed: int) -> None:
        super().__init__(None, name)
        self._trainer, self._seed = trainer, seed

    @override
    def dataloader(self) -> Any:
        """Return the loaders."""
        every = getattr(self._trainer, "reload_dataloaders_every_n_epochs", 0)
        epoch = self._trainer.current_epoch // every * every if every else 0
        with temporary_seed(zlib.crc32(f"{self.name} {self._seed} {epoch}".encode())):
            return super().dataloader()
