"""Your own pictures: a folder of them, a folder for each class, or a CSV table of files."""

import csv
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import DirectoryPath, FilePath

from leyden.data.images.images import Images, Split
from leyden.data.split import Size, set_aside
from leyden.data.targets import Answer, check_sampling, make_targets
from leyden.errors import UserError
from leyden.preparation.pictures import SUFFIXES, Fit, Resample, read_picture
from leyden.schema.field import Classes, Labels

log = logging.getLogger(__name__)


class PictureFile(NamedTuple):
    """A picture's file, its class, labels or number, and its group."""

    path: Path
    label: str | None = None  # None: the folder has one class
    group: str | None = None


class ImageFolder(Images):
    """Your own PNG and JPEG pictures, decoded to `image_shape` and kept in memory.

    `train` and `test` are each a folder with one folder per class, or a CSV file with the columns `path` (relative to
    that file) and `label`, or a folder of pictures that are all of one class, the folder's name. Without `test`,
    `test_size` of the examples in `train` are set aside, always the same ones for the same files. `target` is another
    column in place of `label`. With `answer=labels`, its cells hold any number of labels, `cat;dog`, and `num_classes`
    is the number of all labels. With `answer=number`, they hold a number in `unit`, `num_classes` is 1 (the outputs of
    the net), and the net learns the numbers scaled to mean 0 and deviation 1. `group_by` is a further column of the CSV
    files: pictures with the same value there, such as those of a patient, stay in one split. `classes` gives the names
    in the order of the labels; by default they are sorted, numbers by value.

    A picture of another size is resized with the filter `resample`, either whole (`fit=stretch`) or its largest centred
    part with the right proportions (`fit=crop`); when it shrinks, all filters but `nearest` average over all pixels. A
    picture that cannot be read is an error, or is left out with a warning that names it (`on_corrupt=skip`). The other
    arguments are those of `Images`.
    """

    def __init__(
        self,
        train: DirectoryPath | FilePath,
        test: DirectoryPath | FilePath | None = None,
        test_size: Size = 0.2,
        answer: Answer = "class",
        target: str = "label",
        unit: str | None = None,
        group_by: str | None = None,
        classes: list[str] | None = None,
        resample: Resample = "bilinear",
        fit: Fit = "stretch",
        on_corrupt: Literal["error", "skip"] = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._train_path, self._test_path, self._test_size = Path(train), Path(test) if test else None, test_size
        self._answer, self._target, self._group_by = answer, target, group_by
        self._targets = make_targets(answer, target, unit)
        check_sampling(self._sampling, answer)
        self._read_options = {"resample": resample, "fit": fit}
        self._on_corrupt = on_corrupt
        self._classes = list(classes) if classes is not None else None

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        if self._answer == "number":
            return []
        if self._classes is None and self.schema:
            assert isinstance(self.schema.answer, Classes | Labels)
            self._classes = self.schema.answer.names
        if self._classes is None:
            files = self._list_files("data.train", self._train_path)
            folder = self._train_path.resolve().name
            self._classes = self._targets.names(folder if file.label is None else file.label for file in files)
        return self._classes

    def read(self) -> tuple[Split, Split]:
        """Decode all pictures."""
        train = self._decode("data.train", self._train_path)
        if self._test_path is None:
            strata = self._targets.strata(train.labels)
            test, rest = set_aside("data.test_size", self._test_size, strata, 0, self._stratify, train.groups)
            return train.take(rest), train.take(test)
        test = self._decode("data.test", self._test_path)
        if self._group_by and (common_groups := sorted({*train.groups} & {*test.groups})):
            both = f"both in data.train={self._train_path} and in data.test={self._test_path}"
            raise UserError(
                f"data.group_by={self._group_by}: {common_groups[0]} is {both}: it should be in one of them"
            )
        return train, test

    def _decode(self, key: str, source: Path) -> Split:
        files = self._list_files(key, source)
        if files[0].label is None and len(self.classes) > 1:
            raise UserError(f"{key}={source} has no folders of classes, but there should be {self.classes}")
        images, readable, reasons = [], [], []
        with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while it decodes and resizes
            decoded_images = pool.map(self._try_read, (file.path for file in files))
            for image, file in zip(decoded_images, files, strict=True):
                if isinstance(image, UserError):
                    reasons.append(str(image))
                else:
                    images.append(image)
                    readable.append(file)
        if reasons and self._on_corrupt == "error":
            advice = "mend or remove them, or set data.on_corrupt=skip"
            raise UserError(f"{key}={source} has {len(reasons)} unreadable pictures: {'; '.join(reasons)}; {advice}")
        if reasons:
            log.warning("%s=%s: left out %d pictures: %s", key, source, len(reasons), "; ".join(reasons))
        if not images:
            raise UserError(f"{key}={source} has no picture that can be read")
        cells = [self.classes[0] if file.label is None else file.label for file in readable]
        labels = self._targets.read(f"{key}={source}", cells, self.classes)
        groups = np.array([file.group for file in readable]) if self._group_by else None
        return Split(np.stack(images), labels, groups)

    def _list_files(self, key: str, source: Path) -> list[PictureFile]:
        """Return the pictures of a folder or a CSV table in a fixed order."""
        if source.is_file():
            return self._read_table(key, source)
        if not source.is_dir():
            raise UserError(f"{key}={source} is neither a folder nor a CSV file")
        if self._group_by:
            raise UserError(f"data.group_by={self._group_by} is a column of a CSV file, but {key}={source} is a folder")
        if self._answer != "class":
            raise UserError(f"data.answer={self._answer} is read from a CSV file, but {key}={source} is a folder")
        return _folder_files(key, source)

    def _read_table(self, key: str, table: Path) -> list[PictureFile]:
        columns = ["path", self._target, *([self._group_by] if self._group_by else [])]
        with table.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {*columns} <= set(reader.fieldnames or ()):
                required = f"{', '.join(columns[:-1])} and {columns[-1]}"
                raise UserError(f"{key}={table} has the columns {reader.fieldnames}; it needs {required}")
            rows = list(reader)
        if not rows:
            raise UserError(f"{key}={table} lists no picture")
        for column in columns[2 if self._answer == "labels" else 1 :]:  # with labels, a cell may be empty
            if unset_paths := [row["path"] for row in rows if not row[column]]:
                raise UserError(f"{key}={table} gives {unset_paths[0]} no {column}")
        _, *answer_columns = columns
        return [PictureFile(table.parent / row["path"], *(row[column] for column in answer_columns)) for row in rows]

    def _try_read(self, path: Path) -> np.ndarray | UserError:
        try:
            return read_picture(path, self.image_shape, **self._read_options)[0]
        except UserError as error:
            return error


def _folder_files(key: str, folder: Path) -> list[PictureFile]:
    flat_paths, nested_paths = (
        sorted(path for path in folder.glob(pattern) if path.suffix.lower() in SUFFIXES) for pattern in ("*", "*/*")
    )
    if flat_paths and nested_paths:
        folders = f"folders of pictures ({nested_paths[0].relative_to(folder)}), which are classes"
        raise UserError(f"{key}={folder} holds both pictures ({flat_paths[0].name}) and {folders}: keep one kind")
    if not flat_paths and not nested_paths:
        deeper_folders = sorted({path.parents[1] for path in folder.glob("*/*/*") if path.suffix.lower() in SUFFIXES})
        named_like_key = [path for path in deeper_folders if path.name == key.rpartition(".")[2]]
        hint = "".join(f"; did you mean {key}={path}?" for path in (named_like_key or deeper_folders)[:1])
        raise UserError(f"{key}={folder} holds no PICTURE or CLASS/PICTURE with {' or '.join(SUFFIXES)}{hint}")
    return [PictureFile(path) for path in flat_paths] or [PictureFile(path, path.parent.name) for path in nested_paths]
