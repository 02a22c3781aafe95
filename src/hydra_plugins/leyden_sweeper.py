"""leyden's sweeper for Hydra: a study chooses the points of a multirun, which goes on where it was stopped."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

# Hydra imports this module whenever it composes, so leyden's modules are imported where they are used


class LeydenSweeper(Sweeper):
    """Searches the space of the overrides; conf/hydra/sweeper/leyden.yaml explains its options."""

    def __init__(self, **options: Any) -> None:
        """Take the options, which are checked when the sweep begins."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's context, task and config."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Search; return what the jobs of Hydra's own launchers returned, in batches."""
        from leyden.sweep.start import start

        return start(self._context, self._task, self._config, arguments)
