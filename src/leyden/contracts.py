"""Optional abilities of models, data, nets and loggers beyond Lightning's classes, and how leyden uses them.

Any LightningModule, LightningDataModule and Lightning logger can be used. Each protocol here describes one ability.
leyden checks for it by `isinstance`, so a class has the ability if it defines the members, and need not inherit
anything. These attributes are read if they exist, and have a default otherwise:

    of a model           `monitor`, `net`, `meters`, `cycle`, `optimizer_names`, `lockstep`, `averages_gradients`,
                         `gradient_clip_val`, `accumulate`: see `leyden.models.model` and
                         `leyden.models.manual`; `feature`: a network of `leyden.evaluation.features`
    of data              `carry`: whether rows carry a state over to the next batch; `classes`: the class names
    of a loader          `resident`: whether its batches are on the device already
    of a batch           `num_tokens`: for throughput in tokens

A logger's constructor gets these arguments if it takes them: `run_dir` (the run's folder), `config` (the whole config),
`sweep` (the run's position in a sweep, or None), and `save_dir` or `root_dir` (the run's folder, unless the config
names a folder in it).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from leyden.metric_names import metric_name
from leyden.schema.schema import Schema

# Models


def monitor_of(model: Any) -> tuple[str, Literal["min", "max"]] | None:
    """Return the metric and direction that choose a model's best checkpoint: `monitor = ("val/accuracy", "max")`.

    A foreign module may have an attribute of this name that means something else, which is not read.
    """
    monitor = getattr(model, "monitor", None)
    if not isinstance(monitor, tuple) or len(monitor) != 2 or monitor[1] not in ("min", "max"):
        return None
    return metric_name(monitor[0], "val"), monitor[1]


@runtime_checkable
class ScoresSamples(Protocol):
    """A model that scores its answers, so that `leyden compare --samples` can compare it with others.

    Without it, leyden can score answers that are class probabilities, or values of the same kind as the targets.
    """

    def sample_scores(self, batch: Any, answers: dict[str, Any]) -> dict[str, Any]:
        """Return a tensor for each metric, by name; (B,) holds a number per sample, whose mean is the metric.

        (B, 2) holds a numerator and a denominator, which are each summed over all samples; (B, 10) holds the counts of
        BLEU: the matches and the numbers of 1- to 4-grams, then the lengths of the translation and its reference.
        """


@runtime_checkable
class TextGenerator(Protocol):
    """A model with which `leyden sample` and `callbacks=samples` generate text."""

    def generate(self, prompt: Any, num_tokens: int, **options: Any) -> Iterator[Any]:
        """Yield the next token (B,) of prompts (B, T), `num_tokens` times; `options` are those of `leyden sample`."""


@runtime_checkable
class PictureGenerator(Protocol):
    """A model with which `leyden sample` generates pictures."""

    num_classes: int | None  # None if pictures have no classes
    classes: list[str] | None  # the names of the classes

    def sample_images(self, count: int, label: int | None = None, seed: int = 0) -> Iterator[Any]:
        """Yield `count` pictures of a class, or of all classes in turn, in CPU batches (B, C, H, W) in [0, 1]."""


# Data and nets


@runtime_checkable
class HasFingerprint(Protocol):
    """Data with a fingerprint; a run does not resume if the fingerprint has changed."""

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Return for each split a dict with at least its `sha256`."""


@runtime_checkable
class HasSchema(Protocol):
    """Data with a schema, by which `leyden predict` reads new samples."""

    schema: Schema | None  # None until `setup`, or until `load_state_dict` with a checkpoint's state

    def to_batch(self, arrays: dict[str, Any]) -> Any:
        """Turn the arrays that `schema.read` returned into a batch on the CPU, without targets."""


@runtime_checkable
class HasExamples(Protocol):
    """Data whose samples can be read in order and without augmentation, on any rank."""

    def examples(self, split: str) -> Iterable[Any]:
        """Return the batches of all samples of a split."""


@runtime_checkable
class Tokenized(Protocol):
    """Text data with a tokenizer."""

    # prompt(text) -> ids (1, T), decode(ids) -> text, and stream(); see leyden.preparation.tokenizers
    tokenizer: Any


@runtime_checkable
class SeekableLoader(Protocol):
    """A loader that can jump to a batch when a run is resumed, without reading the batches before it."""

    def seek(self, epoch: int, batch: int) -> None:
        """Let the next iteration begin with a batch of an epoch, both counted from 0."""


@runtime_checkable
class HasFeatures(Protocol):
    """A classifier's net that can be used as a feature network."""

    def features(self, image: Any) -> Any:
        """Return the input of the net's last layer for images (B, C, H, W), in any shape (B, …)."""


# Loggers


@runtime_checkable
class FigureLogger(Protocol):
    """A logger that shows figures."""

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """Show a matplotlib figure, or uint8 pixels (H, W) or (H, W, 3), in place of an earlier one with this name."""


@runtime_checkable
class ImageLogger(Protocol):
    """A logger that shows a picture at every step of the training."""

    def log_image(self, name: str, pixels: Any, step: int) -> None:
        """Show uint8 pixels (H, W) or (H, W, 3) at a step."""


@runtime_checkable
class AnimationLogger(Protocol):
    """A logger that shows the pictures of all steps as an animation."""

    def log_animation(self, name: str, step: int) -> None:
        """Show the animation of the pictures logged as `name`; called once, at the end."""


@runtime_checkable
class TextLogger(Protocol):
    """A logger that stores texts."""

    def log_text(self, name: str, text: str, step: int) -> None:
        """Store a text."""


@runtime_checkable
class BestLogger(Protocol):
    """A logger that shows the best value of a metric."""

    def log_best(self, name: str, mode: Literal["min", "max"]) -> None:
        """Record the metric and direction that choose the best checkpoint; called before training."""


@runtime_checkable
class TruncatingLogger(Protocol):
    """A logger that can remove values; in other loggers, the steps that a resumed run repeats appear twice."""

    def truncate(self, step: int) -> None:
        """Drop what was logged after a step, because a resumed run continues from there."""


@runtime_checkable
class CheckpointLogger(Protocol):
    """A logger that uploads checkpoints."""

    def log_checkpoint(self, path: Path, aliases: list[str], step: int) -> None:
        """Upload a checkpoint, a file or a folder, at the end of training; `aliases` are `best` or `last`."""


@runtime_checkable
class ClosableLogger(Protocol):
    """A logger that must be closed, so that the next run in the same process can start its own."""

    def close(self, exit_code: int) -> None:
        """Close the logger and report the exit code of its run."""
