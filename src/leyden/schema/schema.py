"""The schema of a data module's samples and answers; checkpoints contain it, and predictions read their input by it."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest
from time import perf_counter
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

FIRST_ITEMS = 16  # number of samples whose reading is timed
SECONDS_FOR_THREADS = 1e-3  # time to read a sample from which threads pay


class Samples(NamedTuple):
    """A batch of prepared samples, and a line for each sample that does not fit."""

    indices: list[int]  # position of each sample among those that were prepared together
    names: list[str]
    hashes: list[str]  # 16 hex digits that identify each prepared sample
    arrays: Arrays  # arrays by the names of a batch's fields
    problems: list[str]
    remarks: list[str]  # the changes that made samples fit


class Schema(BaseModel):
    """The field of a sample (`input`), and the field of its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = SCHEMA.number
    input: SerializeAsAny[Field]
    answer: SerializeAsAny[Field]

    @field_validator("input", "answer", mode="before")
    @classmethod
    def _read_field(cls, value: Any) -> Any:
        """Build a field from its plain data; its kind selects the class."""
        if not isinstance(value, dict):
            return value
        kind = value.get("kind")
        if kind not in Field.KINDS:
            raise ValueError(f"kind={kind!r} is none of {', '.join(sorted(Field.KINDS))}")
        return Field.KINDS[kind].model_validate(value)

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Self:
        """Build a schema from its plain data.

        Raises:
            UserError: if the data are damaged or of another format.
        """
        if isinstance(state, dict):
            SCHEMA.check("the schema", state)
        try:
            return cls.model_validate(state)
        except ValidationError as error:
            first_error = error.errors()[0]
            raise UserError(
                f"a damaged schema: {'.'.join(map(str, first_error['loc']))}: {first_error['msg']}"
            ) from None

    def state_dict(self) -> dict[str, Any]:
        """Return the schema as plain data."""
        return self.model_dump()

    def read(self, raw: Any, size: int = 1024) -> Iterator[Samples]:
        """Read a user's input: paths of files and folders, texts, arrays, rows, or lists of them.

        Yields `size` samples at a time, in order; if lengths are unequal, in batches of similar length.

        Raises:
            UserError: if there is nothing to read.
        """
        items = self.input.items(raw)
        while chunk := list(islice(items, size)):
            yield from self.prepare(chunk)

    def prepare(self, items: Sequence[Item]) -> Iterator[Samples]:
        """Read samples that `input.items` listed. The first batch holds the `problems` of all samples."""
        results = self._prepare_all(items)
        problems = [str(result) for result in results if isinstance(result, UserError)]
        samples = [(index, *result) for index, result in enumerate(results) if not isinstance(result, UserError)]
        for batch in self.input.batches([row for *_, row in samples]) if samples else [[]]:
            rows = [samples[i][-1] for i in batch]
            indices, names, remarks = ([samples[i][k] for i in batch] for k in range(3))
            arrays = self.input.collate(rows) if rows else {}
            yield Samples(indices, names, list(map(row_hash, rows)), arrays, problems, list(filter(None, remarks)))
            problems = []

    def _prepare_all(self, items: Sequence[Item]) -> list[tuple[str, str | None, Any] | UserError]:
        """Read samples, in several threads if that is quicker.

        Pillow decodes and resizes without the GIL. For small pictures the threads would mostly wait for each other,
        and take twice the CPU time, so the time of the first ones decides.
        """
        start = perf_counter()
        results = [self._prepare(item) for item in items[:FIRST_ITEMS]]
        remaining = items[FIRST_ITEMS:]
        seconds = (perf_counter() - start) / FIRST_ITEMS
        threads = min(cores(), len(remaining) // FIRST_ITEMS) if seconds > SECONDS_FOR_THREADS else 1
        if threads < 2:
            return results + list(map(self._prepare, remaining))
        chunks = [remaining[k::threads] for k in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            prepared_chunks = pool.map(lambda chunk: list(map(self._prepare, chunk)), chunks)
            rows = zip_longest(*prepared_chunks)
            return results + [result for row in rows for result in row if result is not None]

    def _prepare(self, item: Item) -> tuple[str, str | None, Any] | UserError:
        """Return the sample's name and remark, and its row or the error that says why it does not fit."""
        if isinstance(item.value, UserError):
            return item.value
        try:
            row, remark = self.input.prepare(item)
        except UserError as error:
            return error
        return item.name, remark and f"{item.name}: {remark}", row


def row_hash(row: Any) -> str:
    """Hash a prepared sample (arrays and numbers, or lists, tuples and dicts of them) to 16 hex digits."""
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
