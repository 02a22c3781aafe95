"""A trainer that prints, logs and writes nothing."""

from lightning import Trainer


def trainer(**settings) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{"accelerator": "cpu", "logger": False, **quiet, **settings})
