"""A trainer that prints, logs and writes nothing, and a loader of given batches."""

from collections.abc import Iterator
from typing import Any

from lightning import Trainer


class Batches:
    """A loader of given batches; Lightning would take a plain list for several loaders."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def trainer(**settings) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{"accelerator": "cpu", "logger": False, **quiet, **settings})
