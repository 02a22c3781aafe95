"""The Python API behind `leyden predict`: run a trained model on new samples."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from lightning import LightningModule

from leyden.checkpoints.choose import choose
from leyden.contracts import HasSchema
from leyden.distributed.world import World
from leyden.errors import UserError
from leyden.evaluation.answers import answer, check_predicts, to_records
from leyden.evaluation.load import load
from leyden.run.directory import Run
from leyden.schema.field import Classes, Item
from leyden.schema.schema import Schema


class Answers(NamedTuple):
    """The answers to some samples, in the order of the samples."""

    rows: list[dict[str, Any]]  # plain JSON data: `name`, `sample`, and the answer; a forecast has several rows
    problems: list[str]  # the reasons why the other samples have no answer
    remarks: list[str]  # the changes that made samples fit


class Predictor:
    """A run's model on this rank's device, with the schema that reads its samples."""

    def __init__(self, run: Run, checkpoint_name: str | None = None, world: World | None = None) -> None:
        """Load the checkpoint best, last or step-N.

        Raises:
            UserError: if the model or the data cannot predict, or there is no such checkpoint.
        """
        self.run, self.checkpoint = run, choose(run, checkpoint_name)
        config = run.config
        self.model, data = load(config, self.checkpoint)
        try:
            check_predicts(self.model, config["model"]["_target_"])
        except UserError as error:
            raise UserError(f"{run.name} cannot predict: {error}") from None
        if not isinstance(data, HasSchema) or data.schema is None:
            reason = "no schema" if isinstance(data, HasSchema) else "no attribute schema and no method to_batch"
            raise UserError(f"{run.name} cannot predict: {config['data'].get('_target_', 'data=none')} has {reason}")
        self.schema: Schema = data.schema
        self._to_batch = data.to_batch
        names = getattr(self.model, "classes", None)  # the model's own names take precedence
        answer_field = self.schema.answer
        is_named = isinstance(answer_field, Classes) and isinstance(names, list)
        self._answer_field = answer_field.model_copy(update={"names": names}) if is_named else answer_field
        self.batch_size = int(config["data"].get("eval_batch_size") or config["data"].get("batch_size") or 64)
        move_to_device(self.model, world)

    def predict(self, items: Sequence[Item]) -> Answers:
        """Predict samples that `schema.input.items` listed, in batches."""
        answers = Answers([], [], [])
        remaining_items = iter(items)
        while batch := list(islice(remaining_items, self.batch_size)):
            rows: dict[int, list[dict[str, Any]]] = {}
            for samples in self.schema.prepare(batch):
                answers.problems.extend(samples.problems)
                answers.remarks.extend(samples.remarks)
                if not samples.names:
                    continue
                columns = answer(self.model, self._to_batch(samples.arrays), self.schema.answer)
                rows_of_samples = to_records(self._answer_field, columns, samples.arrays)
                for index, name, digest, answer_rows in zip(
                    samples.indices, samples.names, samples.hashes, rows_of_samples, strict=True
                ):
                    rows[index] = [{"name": name, "sample": digest, **row} for row in answer_rows]
            answers.rows.extend(row for _, sample in sorted(rows.items()) for row in sample)
        return answers


def move_to_device(model: LightningModule, world: World | None) -> None:
    """Move a model to this rank's GPU, if there is one."""
    model.to(f"cuda:{world.local_rank if world else 0}" if torch.cuda.is_available() else "cpu")


def predict(
    run: Run,
    raw: Any,
    checkpoint_name: str | None = None,
    problems: list[str] | None = None,
    remarks: list[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the predictions for the samples, in order, as dicts of plain JSON data; `name` identifies the sample.

    `raw` is as in `leyden.schema.schema.Schema.read`: paths of files and folders, texts, arrays, or lists of them.
    A line for each sample that cannot be predicted is added to `problems`; if `problems` is None, the first one is
    raised. A line for each sample that was changed to fit is added to `remarks`.

    Raises:
        UserError: if the model or the data cannot predict, or there is no such checkpoint.
    """
    predictor = Predictor(run, checkpoint_name)
    items = predictor.schema.input.items(raw)
    while batch := list(islice(items, predictor.batch_size)):
        answers = predictor.predict(batch)
        if answers.problems and problems is None:
            raise UserError(answers.problems[0])
        for lines, new_lines in ((problems, answers.problems), (remarks, answers.remarks)):
            if lines is not None:
                lines.extend(new_lines)
        yield from answers.rows
