"""The base of models that generate pictures, compare them with real ones, and draw them."""

from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from leyden.batch import ImageBatch
from leyden.contracts import HasExamples
from leyden.errors import UserError
from leyden.figures import plots
from leyden.models.gan import pictures
from leyden.models.gan.quality import Quality
from leyden.models.manual import ManualModel
from leyden.models.model import eval_mode
from leyden.schema.field import Classes
from leyden.schema.images import Image

NUM_FOR_DIVERSITY = 1000  # generated pictures if only their diversity is measured


class PictureModel(ManualModel):
    """A model of several nets that generates pictures from z (B, Z), and measures them in every validation and test.

    `feature` and `num_samples` are those of `leyden.models.gan.quality.Quality`; with `num_classes`, pictures are of
    all classes in turn. A subclass defines which of its nets is the `evaluated_generator`. The other arguments are
    those of `leyden.models.manual.ManualModel`.
    """

    def __init__(
        self,
        *args: Any,
        num_classes: PositiveInt | None = None,
        feature: Any = None,
        num_samples: Annotated[int, Field(ge=10)] = 10_000,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.num_classes = num_classes
        self.quality = Quality(feature, num_samples)
        if feature is not None:
            self.monitor = (f"val/fid{feature.suffix}", "min")
        self._real_images: Tensor | None = None  # real pictures of the evaluation that the figures will show

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, if the data have any."""
        answer = self.schema and self.schema.answer
        return answer.names if isinstance(answer, Classes) else None

    @property
    @abstractmethod
    def evaluated_generator(self) -> Any:
        """The net that generates all pictures outside training, with `latent_dim` Z: z (B, Z) to pixels in [-1, 1]."""

    @property
    def feature(self) -> Any:
        """The network whose features measure pictures; a run's manifest records it."""
        return self.quality.feature

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return pictures (B, C, H, W) in [0, 1] of the evaluated generator."""
        generator = self.evaluated_generator
        z = z.to(next(generator.parameters()).dtype)  # float16 if trainer.precision says so
        return (generator(z, label).float().clamp(-1, 1) + 1) / 2

    def sample_images(self, count: int, label: int | None = None, seed: int = 0) -> Iterator[Tensor]:
        """Generate `count` pictures of a class, or of all classes in turn: batches (B, C, H, W) in [0, 1] on the CPU.

        Picture i is a function of (`seed`, i), bit for bit on one machine, however large `count` is.
        """
        return (image.cpu() for image in self._generate(range(count), label, seed))

    def setup(self, stage: str) -> None:
        """Compute how to undo the normalisation of the data's pictures."""
        device = self.trainer.strategy.root_device  # Lightning moves the model there after `setup`
        picture = self.schema and self.schema.input
        values = (picture.mean, picture.std) if isinstance(picture, Image) else ([0.5], [0.5])
        mean, std = (torch.tensor(value, device=device).view(-1, 1, 1) for value in values)
        scale, shift = 2 * std, 2 * mean - 1
        self._scaling = None if (scale == 1).all() and (shift == 0).all() else (scale, shift)
        if self.feature is not None:
            self.feature.to(device)
        if self.num_classes and self.classes and len(self.classes) != self.num_classes:
            raise UserError(
                f"model.num_classes={self.num_classes}, but the data have {len(self.classes)} classes: "
                "write model.num_classes='${data.num_classes}'"
            )

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Add the real pictures to those that generated ones are compared with."""
        self._update_scores(batch, keep_features=False)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Add the real pictures, which are also measured like generated ones, as a reference."""
        self._update_scores(batch, keep_features=True)

    def on_validation_epoch_end(self) -> None:
        """Make pictures, measure and draw them."""
        diversity = self._evaluate("val")
        if not self.trainer.sanity_checking:
            self.log_image("samples", self._draw_grid)
            self._warn_of_failure(diversity)

    def on_test_epoch_end(self) -> None:
        """Make pictures, measure and draw them."""
        self._evaluate("test")
        self._draw_test_figures()

    def on_train_end(self) -> None:
        """Log the animation of the samples."""
        self.log_animation("samples")

    def _warn_of_failure(self, diversity: float) -> None:
        """Do nothing; a subclass may warn of a failure that the `diversity` of a validation shows."""

    def _reset(self) -> None:
        self.quality.reset()
        self._real_images = None

    def _update_scores(self, batch: ImageBatch, keep_features: bool) -> None:
        image = self._in_unit_range(batch.image)
        self.quality.add_real(image, keep_features)
        if self._real_images is None:
            self._real_images = image[: pictures.NUM_SHOWN]

    def _in_tanh_range(self, image: Tensor) -> Tensor:
        """Return the data's pictures with pixels in [-1, 1]."""
        if self._scaling is None:
            return image
        scale, shift = (x.to(image.dtype) for x in self._scaling)
        return image * scale + shift

    def _in_unit_range(self, image: Tensor) -> Tensor:
        """Return the data's pictures with pixels in [0, 1]."""
        return (self._in_tanh_range(image) + 1) / 2

    def _generate(self, rows: range, label: int | None = None, seed: int = 0) -> Iterator[Tensor]:
        """Generate the pictures with the numbers `rows`, in eval mode, a chunk at a time, on the model's device."""

        def forward(z: Tensor, labels: Tensor | None) -> Tensor:
            with eval_mode(self.evaluated_generator):
                return self(z, labels)

        latent_dim = self.evaluated_generator.latent_dim
        return pictures.generate(forward, rows, latent_dim, self.device, self.num_classes, label, seed)

    def _evaluate(self, stage: str) -> float:
        """Generate and measure pictures, and log their scores; return the diversity."""
        world_size, rank = self.trainer.world_size, self.trainer.global_rank
        count = self.quality.num_samples if self.feature else NUM_FOR_DIVERSITY
        count = pictures.CHUNK if self.trainer.sanity_checking else count
        for image in self._generate(range(count * rank // world_size, count * (rank + 1) // world_size)):
            self.quality.add_fake(image)
        self.quality.set_reference(self._real_pictures, self._data_digest)
        values = {"diversity": self.quality.diversity(), **self.quality.scores()}
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()})
        return values["diversity"]

    def _draw_grid(self) -> np.ndarray:
        """Draw the first pictures, from the same latents at every step."""
        images = torch.cat(list(self._generate(range(pictures.grid_size(self.num_classes)))))
        return pictures.grid(images, self.num_classes, self.classes)

    def _draw_test_figures(self) -> None:
        """Draw the figures of the test."""
        samples = torch.cat(list(self._generate(range(pictures.NUM_SHOWN))))
        self.log_figure("test/samples", self._draw_grid)
        if self._real_images is not None:
            self.log_figure("test/real", partial(pictures.real_and_generated, self._real_images, samples))
        self.log_figure("test/interpolation", self._draw_interpolation)
        if isinstance(self.trainer.datamodule, HasExamples):
            self.log_figure("test/neighbours", lambda: pictures.neighbours(samples, self._real_pictures()))
        if shares := self.quality.class_shares():
            fake, real = (share.cpu().numpy() for share in shares)
            names = self.feature.classes or [str(k) for k in range(len(fake))]
            self.log_figure("test/classes", lambda: plots.class_histogram(fake, real, names))

    @torch.no_grad()
    def _draw_interpolation(self) -> np.ndarray:
        return pictures.interpolation(self, self.evaluated_generator.latent_dim, self.num_classes, self.device)

    def _real_pictures(self) -> Iterator[Tensor]:
        data = self.trainer.datamodule
        if not isinstance(data, HasExamples):
            raise UserError("model.feature needs data with examples(split), as leyden.data.Images have")
        return (self._in_unit_range(image) for image, _ in data.examples("train"))

    def _data_digest(self) -> str:
        return self.trainer.datamodule.fingerprint()["train"]["sha256"]
