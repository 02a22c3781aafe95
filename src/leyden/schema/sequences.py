"""Sequences of unequal length, with the same features at each step."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from leyden.errors import UserError
from leyden.preparation.pictures import open_array
from leyden.preparation.scale import scale
from leyden.preparation.ts_file import read_ts
from leyden.schema.field import Arrays, Field, Item, Sketch


class Steps(Field):
    """A sequence of steps with several features each; `features` sketches each feature over all training steps."""

    suffixes: ClassVar[tuple[str, ...]] = (".ts", ".npy")

    kind: str = "steps"
    mean: list[float]  # the mean of each feature, float32
    std: list[float]
    features: list[Sketch]
    length: Sketch

    @classmethod
    def fit(cls, sequences: Sequence[np.ndarray]) -> "Steps":
        """Fit the field to training sequences, (T, F) float32 each; the `std` of a constant feature is 1."""
        steps = np.concatenate(sequences)  # (sum of T, F)
        std = steps.std(0)
        return cls(
            mean=steps.mean(0).tolist(),
            std=np.where(std > 0, std, 1).tolist(),
            features=[Sketch.of(feature) for feature in steps.T],
            length=Sketch.of(np.array([len(sequence) for sequence in sequences])),
        )

    def items_of_file(self, path: Path) -> Iterable[Item]:
        """List the sequences of a .ts file, or of a .npy file of (T, F) or (N, T, F)."""
        if path.suffix.lower() == ".npy":
            array = open_array(path)
            return [Item(f"{path}[{i}]", row) for i, row in enumerate(array if array.ndim > 2 else array[None])]
        return [Item(f"{path}[{i}]", values) for i, values in enumerate(read_ts(path).series)]

    def items_of_value(self, value: Any) -> Iterable[Item]:
        """Treat an array (T, F), or anything that can be converted to one, as one sequence."""
        try:
            return [Item("row 0", np.asarray(value))]
        except ValueError:
            return [Item("row 0", UserError("the steps of a sequence must have the same number of features"))]

    def prepare(self, item: Item) -> tuple[np.ndarray, str | None]:
        """Check a sequence; return it unscaled, (T, F) float32."""
        values = item.value
        if values.dtype.kind not in "fiu":
            raise UserError(f"{item.name} holds {values.dtype}, not numbers")
        if values.ndim != 2 or not len(values):
            raise UserError(f"{item.name} has the shape {list(values.shape)}: should be (steps, features)")
        if values.shape[1] != (count := len(self.features)):
            raise UserError(f"{item.name} has {values.shape[1]} values at each step, but data.num_features={count}")
        if len(bad_values := np.argwhere(~np.isfinite(values))):
            step, feature = bad_values[0]
            location = f"step {step}, feature {feature}"
            raise UserError(
                f"{item.name}, {location}: {values[step, feature]} is not a number; training had no missing values"
            )
        remarks = (sketch.remark(column) for sketch, column in zip(self.features, values.T, strict=True))
        outlier = next(((k, remark) for k, remark in enumerate(remarks) if remark), None)
        return values.astype(np.float32), outlier and f"feature {outlier[0]} is {outlier[1]}"

    def collate(self, rows: Sequence[np.ndarray]) -> Arrays:
        """Return the `input` (B, T, F) float32, scaled and padded with zeros, and the `length` (B,) of each."""
        length = np.array([len(row) for row in rows])
        inputs = np.zeros((len(rows), length.max(), rows[0].shape[1]), np.float32)
        mean, std = self.scaling
        for input_row, row in zip(inputs, rows, strict=True):
            input_row[: len(row)] = scale(row, mean, std)
        return {"input": inputs, "length": length}

    def describe(self) -> str:
        """Describe the lengths and the number of features."""
        return f"sequences of {self.length.low:g} to {self.length.high:g} steps with {len(self.features)} features each"

    @property
    def scaling(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean and the standard deviation of each feature, (F,) float32."""
        return np.array(self.mean, np.float32), np.array(self.std, np.float32)
