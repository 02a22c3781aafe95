"""The Python API behind `leyden sample`: generate pictures or text with a run's model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule

from leyden.contracts import PictureGenerator
from leyden.errors import UserError
from leyden.evaluation.load import load
from leyden.figures.mosaics import to_pixels
from leyden.run.directory import Run


def load_generator(run: Run, checkpoint: Path) -> tuple[LightningModule, LightningDataModule | None]:
    """Return a run's model, on a GPU if there is one, and its data module if it has one, which has the tokenizer."""
    config = run.config
    if "feature" in config["model"]:  # the feature network is only for metrics
        config = {**config, "model": {**config["model"], "feature": None}}
    model, data = load(config, checkpoint)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), data


def generate_images(
    model: PictureGenerator, count: int = 64, label: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return pictures (N, C, H, W) uint8 of one class, or of all classes in turn, and their labels (N,) int64.

    The labels are None if the model has no classes.
    """
    batches = model.sample_images(count, label=label, seed=seed)
    images = np.concatenate([to_pixels(batch.numpy()) for batch in batches])
    if label is not None:
        return images, np.full(count, label)
    return images, np.arange(count) % model.num_classes if model.num_classes else None


def generate_text(
    model: Any, tokenizer: Any, prompt: str = "", n: int = 500, num_samples: int = 1, **options: Any
) -> Iterator[list[str]]:
    """Yield the prompt, then the characters that each token adds to each of `num_samples` texts of `n` tokens.

    A token that ends within a character adds nothing yet. `options` are those of
    `leyden.models.text.language_model.LanguageModel.generate`.

    Raises:
        UserError: if the tokenizer cannot encode the prompt.
    """
    try:
        ids = tokenizer.prompt(prompt)
    except UserError as error:
        raise UserError(f"--prompt: {error}") from error
    tokens = model.generate(torch.from_numpy(ids.astype("int64")).expand(num_samples, -1), n, **options)
    streams = [tokenizer.stream() for _ in range(num_samples)]
    yield [tokenizer.decode(ids) if prompt else ""] * num_samples  # decoded, because encoding may have changed it
    for token in tokens:
        yield [stream.push(k) for stream, k in zip(streams, token.tolist(), strict=True)]
    yield [stream.end() for stream in streams]
