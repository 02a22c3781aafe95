"""One part of a sample or of its answer as plain data: its kind, what training saw of it, how it is read and worded."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from leyden.errors import UserError
from leyden.preparation.scale import unscale

NUM_KNOTS = 129  # quantiles of a sketch: a Kolmogorov-Smirnov distance from them is within 0.003 of the exact one
MAX_SKETCHED = 1_000_000  # values that a sketch is made of; of more, evenly spaced ones are taken

Arrays = dict[str, np.ndarray]  # by the names of a batch's fields, with a row for each sample


class Item(NamedTuple):
    """One sample as a person gives it."""

    name: str  # a file, `file:line` or `file[index]`; in errors and answers
    value: Any  # a path, a text, an array, a row; or the UserError that says why there is none


class Sketch(BaseModel):
    """The distribution of a number in the training samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    mean: float
    std: float
    missing: float = 0.0  # the share of values that were not there
    knots: list[float]  # quantiles at equal distances, from the lowest to the highest

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Sketch numbers (N,), of which those that are missing are NaN."""
        values = values[:: -(-len(values) // MAX_SKETCHED)].astype(np.float64)
        present = values[~np.isnan(values)]
        knots = np.quantile(present, np.linspace(0, 1, NUM_KNOTS))
        spread = {"low": knots[0], "high": knots[-1], "mean": present.mean(), "std": present.std()}
        missing = 1 - len(present) / len(values)
        return cls(**{name: float(value) for name, value in spread.items()}, missing=missing, knots=knots.tolist())

    def remark(self, values: np.ndarray) -> str | None:
        """Say which of some numbers lies farthest outside of what training saw, None if none does."""
        if not len(values) or (values.min() >= self.low and values.max() <= self.high):
            return None
        farthest = values.max() if values.max() - self.high > self.low - values.min() else values.min()
        return f"{farthest:.4g}, and training saw {self.low:.4g} to {self.high:.4g}"


class Field(BaseModel):
    """A kind of value: a picture, a text, a class. A subclass has a `kind` of its own, its name in saved schemas.

    A field of samples says how they are listed in what a person gives (`items`), how each is read (`prepare`), and how
    many of them become arrays (`collate`); a field of answers says how these are worded (`word`). Everything that
    these need is plain data that was fitted on the training samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    KINDS: ClassVar[dict[str, type["Field"]]] = {}
    suffixes: ClassVar[tuple[str, ...]] = ()  # of the files that are looked for in folders

    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.KINDS[cls.model_fields["kind"].default] = cls

    def items(self, raw: Any) -> Iterator[Item]:
        """List the samples in paths of files and folders, or in values; a file that cannot be read is an item, too.

        Raises:
            UserError: when a path does not exist, a folder holds no file of this kind, or there is nothing at all.
        """
        if isinstance(raw, list | tuple):
            if not raw:
                raise UserError("there is nothing to read: name one or more files")
            for number, part in enumerate(raw):
                if isinstance(part, Path):
                    yield from self.items(part)
                else:
                    yield from (Item(f"row {number}", item.value) for item in self.items_of_value(part))
        elif isinstance(raw, Path):
            for path in self._files(raw):
                try:
                    yield from self.items_of_file(path)
                except UserError as error:
                    yield Item(str(path), error)
        else:
            yield from self.items_of_value(raw)

    def items_of_file(self, path: Path) -> Iterable[Item]:
        """List the samples in a file."""
        raise UserError(f"{path}: files of the kind {self.kind} cannot be read")

    def items_of_value(self, value: Any) -> Iterable[Item]:
        """List the samples in a value."""
        raise UserError(f"a {type(value).__name__} cannot be read as the kind {self.kind}")

    def prepare(self, item: Item) -> tuple[Any, str | None]:
        """Read a sample; return what `collate` takes, and a remark for the reader where it was changed on the way.

        Raises:
            UserError: which names the item, when it does not fit.
        """
        raise NotImplementedError

    def collate(self, rows: Sequence[Any]) -> Arrays:
        """Return the arrays of a batch, as a model's net takes them."""
        raise NotImplementedError

    def batches(self, rows: Sequence[Any]) -> Iterator[list[int]]:
        """Yield the indices of the rows that go into a batch together; by default, all of them."""
        yield list(range(len(rows)))

    def word(self, answers: Arrays, samples: Arrays) -> list[list[dict[str, Any]]]:
        """Return for each sample the rows, plain JSON data, that answer it in a person's words.

        `answers` are what a model's `predict_step` returned, by name; `samples` what `collate` had made of the input.
        """
        return [[dict(zip(answers, row, strict=True))] for row in zip(*map(_to_list, answers.values()), strict=True)]

    def describe(self) -> str:
        """Say in a line what the values are."""
        return self.kind

    def _files(self, path: Path) -> list[Path]:
        if not path.is_dir():
            if not path.exists():
                raise UserError(f"{path} does not exist")
            return [path]
        files = [file for file in files_below(path) if file.suffix.lower() in self.suffixes]
        if not files:
            raise UserError(f"{path} holds no file whose name ends in {' or '.join(self.suffixes)}")
        return files


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder sorted by name, then those of its folders; quicker than `Path.rglob`."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root, name) for name in sorted(names))


class Classes(Field):
    """One of several classes."""

    kind: str = "classes"
    names: list[str]
    counts: list[int]  # of the training samples

    def word(self, answers: Arrays, samples: Arrays) -> list[list[dict[str, Any]]]:
        """Return the class decided for as `label`, its `probability`, and the `probabilities` by class.

        Without a `prediction` beside the `probability`, it is the most probable one.
        """
        if "probability" not in answers:
            return super().word(answers, samples)
        decided = answers.get("prediction", answers["probability"].argmax(1))
        return [[self._word(row, k)] for row, k in zip(answers["probability"].tolist(), decided.tolist(), strict=True)]

    def describe(self) -> str:
        """Name the classes, with their shares of the training samples."""
        total = sum(self.counts) or 1
        shares = [f"{name} ({100 * n / total:.3g} %)" for name, n in zip(self.names, self.counts, strict=True)]
        return f"{len(self.names)} classes: {', '.join(shares[:12])}{', …' if len(shares) > 12 else ''}"

    def _word(self, row: list[float], decided: int) -> dict[str, Any]:
        names = self.names if len(self.names) == len(row) else [str(k) for k in range(len(row))]
        probabilities = dict(zip(names, row, strict=True))
        return {"label": names[decided], "probability": row[decided], "probabilities": probabilities}


class Labels(Field):
    """Any number of several labels."""

    kind: str = "labels"
    names: list[str]
    counts: list[int]  # of the training samples that have each
    samples: int  # to train on

    def word(self, answers: Arrays, samples: Arrays) -> list[list[dict[str, Any]]]:
        """Return the `labels` decided for, and the `probabilities` of all."""
        if not {"probability", "prediction"} <= answers.keys():
            return super().word(answers, samples)
        columns = (answers["probability"].tolist(), answers["prediction"].tolist())
        return [[self._word(*row)] for row in zip(*columns, strict=True)]

    def describe(self) -> str:
        """Name the labels, with their shares of the training samples."""
        shares = [f"{name} ({100 * n / self.samples:.3g} %)" for name, n in zip(self.names, self.counts, strict=True)]
        return f"any of {len(self.names)} labels: {', '.join(shares[:12])}{', …' if len(shares) > 12 else ''}"

    def _word(self, probabilities: list[float], decided: list[int]) -> dict[str, Any]:
        labels = [name for name, is_so in zip(self.names, decided, strict=True) if is_so]
        return {"labels": labels, "probabilities": dict(zip(self.names, probabilities, strict=True))}


class Number(Field):
    """A number, which training scaled by its `mean` and `std`; `sketch` is of the training samples, unscaled."""

    kind: str = "number"
    name: str
    unit: str | None = None
    mean: float
    std: float
    sketch: Sketch

    @classmethod
    def fit(cls, values: np.ndarray, name: str, unit: str | None = None) -> "Number":
        """Learn from training values (N,); those that are all equal are not scaled."""
        sketch = Sketch.of(values)
        return cls(name=name, unit=unit, mean=sketch.mean, std=sketch.std or 1.0, sketch=sketch)

    def word(self, answers: Arrays, samples: Arrays) -> list[list[dict[str, Any]]]:
        """Return the `prediction` of each sample in its `unit`, if it has one."""
        prediction = answers.get("prediction")
        if not isinstance(prediction, np.ndarray) or prediction.ndim != 1:
            return super().word(answers, samples)
        unit = {"unit": self.unit} if self.unit else {}
        values = unscale(prediction.astype(np.float64), np.float64(self.mean), np.float64(self.std))
        return [[{"prediction": value, **unit}] for value in values.tolist()]

    def describe(self) -> str:
        """Say what the number is, and what training saw of it."""
        unit, sketch = f" {self.unit}" if self.unit else "", self.sketch
        return f"{self.name}: {sketch.low:.4g} to {sketch.high:.4g}{unit}, mean {self.mean:.4g}, std {sketch.std:.4g}"


def _to_list(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)
