"""What LightningModule.log was given: read from private parts of Lightning 2.6."""

from typing import Any

from lightning import Trainer


def logged_names(trainer: Trainer) -> set[str]:
    """Return the names that LightningModule.log was given so far, in training too."""
    return set(trainer.callback_metrics) | {str(key).partition(".")[2] for key in trainer._results or ()}


def just_logged(trainer: Trainer) -> dict[str, Any]:
    """Return what the current or last pass has logged for callbacks, and nothing of earlier passes."""
    return trainer._logger_connector.metrics["callback"] if trainer._results else {}
