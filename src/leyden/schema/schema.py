"""A data module's samples and answers, as every checkpoint keeps them; the only reader of what people bring."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, SerializeAsAny, ValidationError, field_validator

import leyden.schema.images
import leyden.schema.passages
import leyden.schema.sequences
import leyden.schema.series
import leyden.schema.text  # noqa: F401  these define the kinds of fields
from leyden.distributed.world import cores
from leyden.errors import UserError
from leyden.files.formats import SCHEMA
from leyden.schema.field import Arrays, Field, Item


class Samples(NamedTuple):
    """Prepared samples: a batch of those that fit, and a line on each of the others."""

    places: list[int]  # of each among the samples that were given together
    names: list[str]
    hashes: list[str]  # 16 hex digits of the prepared sample, by which it is known again elsewhere
    arrays: Arrays  # by the names of a batch's fields
    problems: list[str]
    remarks: list[str]  # how samples were read that did not fit as they were


class Schema(BaseModel):
    """What a sample is (`input`), and what its answer is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = SCHEMA.number
    input: SerializeAsAny[Field]
    answer: SerializeAsAny[Field]

    @field_validator("input", "answer", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any) -> Any:
        """Read a field's plain data as the class of its kind."""
        if not isinstance(value, dict):
            return value
        kind = value.get("kind")
        if kind not in Field.KINDS:
            raise ValueError(f"kind={kind!r} is none of {', '.join(sorted(Field.KINDS))}")
        return Field.KINDS[kind].model_validate(value)

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Self:
        """Make a schema from its plain data.

        Raises:
            UserError: when the data are damaged or of another format.
        """
        if isinstance(state, dict):
            SCHEMA.check("the schema", state)
        try:
            return cls.model_validate(state)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"a damaged schema: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    def state_dict(self) -> dict[str, Any]:
        """Return the schema as plain data."""
        return self.model_dump()

    def read(self, raw: Any, size: int = 1024) -> Iterator[Samples]:
        """Read what a person gives: files and folders as paths, texts, arrays, rows, or lists of them.

        Yields `size` samples at a time, in their order; where they are of unequal length, in batches of similar ones.

        Raises:
            UserError: when there is nothing to read.
        """
        items = self.input.items(raw)
        while chunk := list(islice(items, size)):
            yield from self.prepare(chunk)

    def prepare(self, items: Sequence[Item]) -> Iterator[Samples]:
        """Read samples that `input.items` listed; those that do not fit are named in the first batch's problems."""
        # Pillow releases the interpreter's lock where it decodes and resizes; few items are not worth a thread
        threads = max(1, min(cores(), len(items) // 16))
        stretches = [items[k::threads] for k in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            prepared = pool.map(lambda stretch: list(map(self._prepare, stretch)), stretches)
            results = [result for row in zip_longest(*prepared) for result in row if result is not None]
        problems = [str(result) for result in results if isinstance(result, UserError)]
        fitting = [(place, *result) for place, result in enumerate(results) if not isinstance(result, UserError)]
        for indices in self.input.batches([row for *_, row in fitting]) if fitting else [[]]:
            rows = [fitting[i][-1] for i in indices]
            places, names, remarks = ([fitting[i][k] for i in indices] for k in range(3))
            arrays = self.input.collate(rows) if rows else {}
            yield Samples(places, names, list(map(row_hash, rows)), arrays, problems, list(filter(None, remarks)))
            problems = []

    def _prepare(self, item: Item) -> tuple[str, str | None, Any] | UserError:
        """Return the sample's name, a remark and its row, or why it does not fit."""
        if isinstance(item.value, UserError):
            return item.value
        try:
            row, remark = self.input.prepare(item)
        except UserError as error:
            return error
        return item.name, remark and f"{item.name}: {remark}", row


def row_hash(row: Any) -> str:
    """Return 16 hex digits of a prepared sample: arrays and numbers, or lists, tuples and dicts of them."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            part = [value for _, value in sorted(part.items())]
        if isinstance(part, tuple) or (isinstance(part, list) and part and not isinstance(part[0], int)):
            for value in part:
                add(value)
        else:
            array = np.ascontiguousarray(part)
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array)

    add(row)
    return digest.hexdigest()[:16]
