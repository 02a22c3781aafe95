"""Answers: the output of a model's `predict_step` on a batch, as columns with a row for each sample."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from leyden.errors import UserError
from leyden.models.model import eval_mode
from leyden.schema.field import Arrays, Classes, Field


def check_predicts(model: LightningModule, target: str) -> None:
    """Check that a model, whose class is `target`, has a `predict_step`.

    Raises:
        UserError: if it has none.
    """
    if not is_overridden("predict_step", model, LightningModule):
        raise UserError(f"{target} has no predict_step")


def answer(
    model: LightningModule,
    batch: Any,
    field: Field | None,
    precision: AbstractContextManager[Any] | None = None,
) -> dict[str, Tensor | list[Any]]:
    """Return a model's answers to a batch, in eval mode, as columns with a row for each sample.

    `predict_step` may return columns by name; rows, each a dict or one value; or a tensor (B, …). The tensor is the
    column `probability` (B, K) if `field`, the schema's answer field, is `Classes`, else the column `prediction`.

    Raises:
        UserError: if `predict_step` returns something else.
    """
    with torch.no_grad(), eval_mode(model), precision or nullcontext():
        output = model.predict_step(move_data_to_device(batch, model.device), 0)
    if isinstance(output, Tensor):
        is_probability = isinstance(field, Classes) and output.ndim == 2
        output = {"probability" if is_probability else "prediction": output}
    elif isinstance(output, Sequence) and not isinstance(output, str):
        rows = [row if isinstance(row, dict) else {"prediction": row} for row in output]
        output = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    if not isinstance(output, dict) or len({len(column) for column in output.values()}) > 1:
        raise UserError(
            f"predict_step of {type(model).__name__} returns a {type(output).__name__}; should be a tensor, a list or "
            "a dict of them, with a row for each sample"
        )
    return {name: column.cpu() if isinstance(column, Tensor) else column for name, column in output.items()}


def to_arrays(columns: dict[str, Tensor | list[Any]]) -> Arrays:
    """Convert tensors to numpy arrays, half precision to float32; lists are not changed."""
    return {name: _to_array(column) for name, column in columns.items()}


def to_records(
    field: Field | None, columns: dict[str, Tensor | list[Any]], samples: Arrays
) -> list[list[dict[str, Any]]]:
    """Convert answers to records for the user: for each sample, a list of dicts of plain JSON data."""
    return (field or Field(kind="answer")).to_records(to_arrays(columns), samples)


def _to_array(column: Tensor | list[Any]) -> Any:
    if not isinstance(column, Tensor):
        return column
    is_low_precision = column.is_floating_point() and column.dtype != torch.float64
    return (column.float() if is_low_precision else column).numpy()
