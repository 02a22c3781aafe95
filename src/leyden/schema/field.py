"""Fields: plain data that describe how samples are read and how answers are formatted."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from leyden.errors import UserError
from leyden.preparation.scale import unscale

NUM_KNOTS = 129  # quantiles of a sketch: a Kolmogorov-Smirnov distance from them is within 0.003 of the exact one
MAX_SKETCHED = 1_000_000  # values that a sketch is computed from; a longer array is thinned evenly

Arrays = dict[str, np.ndarray]  # arrays by the names of a batch's fields, each with a row for each sample


class Item(NamedTuple):
    """One sample of a user's input, before it is prepared."""

    name: str  # name in errors and answers: a file, `file:line` or `file[index]`
    value: Any  # a path, a text, an array, a row; or the UserError that says why it cannot be read


class Sketch(BaseModel):
    """The distribution of a number in the training samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    mean: float
    std: float
    missing: float = 0.0  # the share of missing values
    knots: list[float]  # evenly spaced quantiles, from the minimum to the maximum

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        """Compute the sketch of numbers (N,), where NaN is a missing value."""
        values = values[:: -(-len(values) // MAX_SKETCHED)].astype(np.float64)
        observed = values[~np.isnan(values)]
        knots = np.quantile(observed, np.linspace(0, 1, NUM_KNOTS))
        statistics = {"low": knots[0], "high": knots[-1], "mean": observed.mean(), "std": observed.std()}
        missing = 1 - len(observed) / len(values)
        return cls(**{name: float(value) for name, value in statistics.items()}, missing=missing, knots=knots.tolist())

    def remark(self, values: np.ndarray) -> str | None:
        """Describe the number that lies farthest outside the range of training; return None if all are inside."""
        if not len(values) or (values.min() >= self.low and values.max() <= self.high):
            return None
        farthest_value = values.max() if values.max() - self.high > self.low - values.min() else values.min()
        return f"{farthest_value:.4g}, and training saw {self.low:.4g} to {self.high:.4g}"


class Field(BaseModel):
    """A kind of value: a picture, a text, a class. Each subclass has a `kind`, which is its name in saved schemas.

    An input field lists the samples in a user's input (`items`), reads each of them (`prepare`), and combines several
    into arrays (`collate`). An answer field converts answers to records (`to_records`). The fields of the class, which
    are plain data fitted to the training samples, hold everything that these methods need.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    KINDS: ClassVar[dict[str, type["Field"]]] = {}
    suffixes: ClassVar[tuple[str, ...]] = ()  # suffixes of the files that are read from a folder

    kind: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.KINDS[cls.model_fields["kind"].default] = cls

    def items(self, raw: Any) -> Iterator[Item]:
        """List the samples in paths of files and folders, or in values.

        An unreadable file becomes an item that holds the error.

        Raises:
            UserError: if a path does not exist, a folder holds no file of this kind, or a list is empty.
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
        """Read a sample; return a row for `collate` and, if the sample was changed, a remark for the user.

        Raises:
            UserError: if the sample does not fit; the message names it.
        """
        raise NotImplementedError

    def collate(self, rows: Sequence[Any]) -> Arrays:
        """Combine rows into the arrays of a batch, in the form that a model's net takes."""
        raise NotImplementedError

    def batches(self, rows: Sequence[Any]) -> Iterator[list[int]]:
        """Yield the indices of the rows that go into a batch together; by default, all of them."""
        yield list(range(len(rows)))

    def to_records(self, answers: Arrays, samples: Arrays) -> list[list[dict[str, Any]]]:
        """Convert answers to records for the user: for each sample, a list of dicts of plain JSON data.

        `answers` are the columns that a model's `predict_step` returned, `samples` the arrays that `collate` returned.
        """
        return [[dict(zip(answers, row, strict=True))] for row in zip(*map(_to_list, answers.values()), strict=True)]

    def describe(self) -> str:
        """Describe the values in one line."""
        return self.kind

    def _files(self, path: Path) -> list[Path]:
        if not path.is_dir():
            if not path.exists():
                raise UserError(f"{path} does not exist")
            return [path]
        files = [Path(file) for file in files_below(path) if file.lower().endswith(self.suffixes)]
        if not files:
            raise UserError(f"{path} holds no file whose name ends in {' or '.join(self.suffixes)}")
        return files


def files_below(folder: Path) -> Iterator[str]:
    """Yield the files of a folder sorted by name, then those of its folders; quicker than `Path.rglob`."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (f"{root}/{name}" for name in sorted(names))


class Classes(Field):
    """One of several classes."""

    kind: str = "classes"
    names: list[str]
    counts: list[int]  # training samples of each class

    def to_records(self, answers: Arrays, samples: Arrays) -> list[list[dict[str, Any]]]:
        """Return the predicted class as `label`, its `probability`, and the `probabilities` by class.

        If `answers` have no `prediction`, the most probable class is predicted.
        """
        if "probability" not in answers:
            return super().to_records(answers, samples)
        probability = answers["probability"]
        label = answers.get("prediction", probability.argmax(1))
        return [[self._format_row(row, k)] for row, k in zip(probability.tolist(), label.tolist(), strict=True)]

    def describe(self) -> str:
        """Name the classes, with their shares of the training samples."""
        total = sum(self.counts) or 1
        shares = [f"{name} ({100 * n / total:.3g} %)" for name, n in zip(self.names, self.counts, strict=True)]
        return f"{len(self.names)} classes: {', '.join(shares[:12])}{', …' if len(shares) > 12 else ''}"

    def _format_row(self, row: list[float], predicted: int) -> dict[str, Any]:
        names = self.names if len(self.names) == len(row) else [str(k) for k in range(len(row))]
        probabilities = dict(zip(names, row, strict=True))
        return {"label": names[predicted], "probability": row[predicted], "probabilities": probabilities}


class Labels(Field):
    """Any subset of several labels."""

    kind: str = "labels"
    names: list[str]
    counts: list[int]  # training samples with each label
    samples: int  # the number of training samples

    def to_records(self, answers: Arrays, samples: Arrays) -> list[list[dict[str, Any]]]:
        """Return the predicted `labels`, and the `probabilities` of all labels."""
        if not {"probability", "prediction"} <= answers.keys():
            return super().to_records(answers, samples)
        columns = (answers["probability"].tolist(), answers["prediction"].tolist())
        return [[self._format_row(*row)] for row in zip(*columns, strict=True)]

    def describe(self) -> str:
        """Name the labels, with their shares of the training samples."""
        shares = [f"{name} ({100 * n / self.samples:.3g} %)" for name, n in zip(self.names, self.counts, strict=True)]
        return f"any of {len(self.names)} labels: {', '.join(shares[:12])}{', …' if len(shares) > 12 else ''}"

    def _format_row(self, probabilities: list[float], predicted: list[int]) -> dict[str, Any]:
        labels = [name for name, is_predicted in zip(self.names, predicted, strict=True) if is_predicted]
        return {"labels": labels, "probabilities": dict(zip(self.names, probabilities, strict=True))}


class Number(Field):
    """A number, which training scales by `mean` and `std`; `sketch` describes the unscaled training values."""

    kind: str = "number"
    name: str
    unit: str | None = None
    mean: float
    std: float
    sketch: Sketch

    @classmethod
    def fit(cls, values: np.ndarray, name: str, unit: str | None = None) -> "Number":
        """Fit the field to training values (N,); if all are equal, `std` is 1."""
        sketch = Sketch.of(values)
        return cls(name=name, unit=unit, mean=sketch.mean, std=sketch.std or 1.0, sketch=sketch)

    def to_records(self, answers: Arrays, samples: Arrays) -> list[list[dict[str, Any]]]:
        """Return the `prediction` of each sample in its `unit`, if it has one."""
        prediction = answers.get("prediction")
        if not isinstance(prediction, np.ndarray) or prediction.ndim != 1:
            return super().to_records(answers, samples)
        unit = {"unit": self.unit} if self.unit else {}
        values = unscale(prediction.astype(np.float64), np.float64(self.mean), np.float64(self.std))
        return [[{"prediction": value, **unit}] for value in values.tolist()]

    def describe(self) -> str:
        """Describe the number and its distribution in training."""
        unit, sketch = f" {self.unit}" if self.unit else "", self.sketch
        return f"{self.name}: {sketch.low:.4g} to {sketch.high:.4g}{unit}, mean {self.mean:.4g}, std {sketch.std:.4g}"


def _to_list(column: Any) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)
