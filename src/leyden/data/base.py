"""The base of every data module: files are read and split once, and batches are made on the model's device."""

import hashlib
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import NonNegativeInt, PositiveInt

from leyden.data.download import Files
from leyden.data.indexed import BatchFunction, OrderedLoader, ShuffledLoader
from leyden.data.loader import Loader, device_and_ranks
from leyden.data.split import Size, set_aside
from leyden.errors import UserError
from leyden.folds import Fold, Folds
from leyden.schema.field import Arrays
from leyden.schema.schema import Schema


class Data(LightningDataModule):
    """Base of the data modules.

    `batch_size` and `eval_batch_size` (default: the same) count the samples of a batch over all ranks. With `folds`,
    the run belongs to a cross-validation, and the fold with the number `fold` (from 0) is for validation. `limit`
    trains on that many samples only; the samples of a smaller limit are among those of a larger one. `seed` determines
    the order and the augmentation of the training samples, but never the split that a sample is in.

    `schema` describes a sample and its answer, and is the whole state of the data. `setup` learns it from the training
    samples, unless a checkpoint holds it: prediction from a checkpoint does not need the files.

    A subclass defines `_make_splits`, `_make_schema` and `to_batch`. A split may be one batch of all its samples, a
    named tuple of tensors on the CPU; for other splits a subclass defines `_describe`, and either `_batch_function`, or
    both of `_train_loader` and `_eval_loader`.
    """

    schema: Schema | None = None
    _downloads = Files("", ())  # what `prepare_data` downloads: by default nothing

    def __init__(
        self,
        batch_size: PositiveInt,
        eval_batch_size: PositiveInt | None = None,
        folds: Folds | None = None,
        fold: NonNegativeInt | None = None,
        limit: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self._batch_size, self._eval_batch_size = batch_size, eval_batch_size or batch_size
        self._fold, self._limit, self._seed = Fold.from_config(folds, fold), limit, seed
        self._splits: dict[str, Any] = {}

    def __str__(self) -> str:
        """Describe the samples and answers; Lightning's own text needs loaders with a `dataset`."""
        schema = f": {self.schema.input.describe()}; {self.schema.answer.describe()}" if self.schema else ""
        return f"{type(self).__name__}{schema}"

    def prepare_data(self) -> None:
        """Download the files that are missing; Lightning calls this in one process of each node."""
        self._downloads.fetch()

    def setup(self, stage: str | None = None) -> None:
        """Read the files, split them and learn the schema, once."""
        if not self._splits:
            self._splits = self._make_splits()
            self.schema = self.schema or self._make_schema()

    def state_dict(self) -> dict[str, Any]:
        """Return the schema, with which a loaded model reads samples and formats answers without the files."""
        return {"schema": self.schema.state_dict()} if self.schema else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the schema of a checkpoint.

        Raises:
            UserError: if it is damaged, or of another format.
        """
        if "schema" not in state_dict:
            raise UserError(
                "the checkpoint is an older one without the schema of its data: train again with leyden rerun"
            )
        self.schema = Schema.restore(state_dict["schema"])

    def to_batch(self, arrays: Arrays) -> Any:
        """Turn the arrays of samples that `schema.read` returned into a batch on the CPU, without targets."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Return the size and the sha256 of each split that `setup` made."""
        return {name: self._describe(split) for name, split in self._splits.items()}

    def train_dataloader(self) -> Loader:
        """Return the batches to train on, in an order drawn from (seed, epoch)."""
        return self._train_loader(*device_and_ranks(self.trainer))

    def val_dataloader(self) -> Loader:
        """Return the validation batches, every sample once."""
        return self._eval_loader("val", *device_and_ranks(self.trainer))

    def test_dataloader(self) -> Loader:
        """Return the test batches, every sample once; the validation batches if there is no test split."""
        return self._eval_loader("test" if "test" in self._splits else "val", *device_and_ranks(self.trainer))

    def predict_dataloader(self) -> Loader:
        """Return the test batches."""
        return self.test_dataloader()

    def _make_splits(self) -> dict[str, Any]:
        """Return the splits `train`, `val` and, if there is one, `test`."""
        raise NotImplementedError

    def _make_schema(self) -> Schema:
        """Learn the schema from the training samples."""
        raise NotImplementedError

    def _describe(self, split: Any) -> dict[str, Any]:
        """Return the fingerprint of a split: `size` and `sha256`."""
        return {"size": len(split[0]), "sha256": sha256(*(field.numpy() for field in split))}

    def _batch_function(self, name: str, device: torch.device) -> tuple[BatchFunction, int]:
        """Return a function that makes batches on `device` from sample indices, and the size of the split `name`."""
        split = self._splits[name]
        fields = [field.to(device) for field in split]

        def make_batch(index: np.ndarray, rows: slice) -> Any:
            indices = torch.from_numpy(index[rows]).to(device, non_blocking=True)
            return type(split)(*(field[indices] for field in fields))

        return make_batch, len(fields[0])

    def _train_loader(self, device: torch.device, ranks: dict[str, int]) -> Loader:
        make_batch, size = self._batch_function("train", device)
        order = {"seed": self._seed, "probabilities": self._probabilities()}
        return ShuffledLoader(make_batch, size, batch_size=self._batch_size, **order, **ranks)

    def _probabilities(self) -> np.ndarray | None:
        """Return the probability (N,) of drawing each training sample; None if each is drawn once an epoch."""
        return None

    def _eval_loader(self, name: str, device: torch.device, ranks: dict[str, int]) -> Loader:
        make_batch, size = self._batch_function(name, device)
        return OrderedLoader(make_batch, size, batch_size=self._eval_batch_size, **ranks)

    def _check_limit(self, count: int, samples: str) -> None:
        if self._limit is not None and self._limit > count:
            raise UserError(f"data.limit={self._limit} is larger than the {count} {samples}")

    def _hold_out(
        self, size: Size, labels: np.ndarray, seed: int, stratify: bool, groups: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Set a fold or `size` examples aside for validation; return the indices for training and for validation."""
        val, rest = set_aside("data.val_size", self._fold or size, labels, seed, stratify, groups)
        self._check_limit(len(rest), "training examples")
        return rest[: self._limit], val


def sha256(*parts: bytes | np.ndarray) -> str:
    """Return the SHA-256 hex digest of the concatenated bytes and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part)
    return digest.hexdigest()


def check_facts(config: dict[str, Any], files: dict[str, Any]) -> None:
    """Compare facts of the config with those of the files.

    Raises:
        UserError: which names the keys that differ, and their right values.
    """
    keys = [key for key in config if config[key] != files[key]]
    if keys:
        written, right = (" ".join(f"data.{key}={facts[key]}" for key in keys) for facts in (config, files))
        raise UserError(f"{written} does not fit the files: write {right}")
