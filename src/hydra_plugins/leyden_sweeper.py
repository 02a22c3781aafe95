"""Hydra's way to leyden's sweeps: a multirun whose points a study chooses, and that goes on where it was stopped."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

# this module is read whenever anything is composed, so what it needs of leyden is imported where it is used


class LeydenSweeper(Sweeper):
    """Searches the space of the overrides; conf/hydra/sweeper/leyden.yaml explains its options."""

    def __init__(self, **options: Any) -> None:
        """Take the options, which are checked when the sweep begins."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Search; return what the jobs of Hydra's own launchers returned, in batches."""
        from leyden.sweep.start import start

        return start(self._context, self._task, self._config, arguments)
