"""Your own pictures: a folder of them, folders of classes, or a table of files."""

import csv
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import DirectoryPath, FilePath

from leyden.data.images import Images
from leyden.data.pictures import Fit, Resample, read_picture
from leyden.data.split import Size, Split, set_aside
from leyden.errors import UserError

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg")


class ImageFolder(Images):
    """Your own PNG and JPEG pictures, decoded to `image_shape` and kept in memory.

    `train` and `test` are each a folder with one folder per class, or a CSV file with the columns `path`
    (relative to that file) and `label`, or a folder of pictures that are all of one class, named like it. Without
    `test`, `test_size` of `train` is set aside, always the same examples for the same files. `classes` gives the
    names in the order of the labels; by default they are sorted, numbers by value. A picture of another size is
    resized with the filter `resample`, which (but for `nearest`) takes in every pixel where it shrinks: whole
    (`fit=stretch`), or its largest centred part with the right proportions (`fit=crop`). A picture that cannot
    be read is an error, or left out with a warning that names it (`on_corrupt=skip`).
    """

    def __init__(
        self,
        train: DirectoryPath | FilePath,
        test: DirectoryPath | FilePath | None = None,
        test_size: Size = 0.2,
        classes: list[str] | None = None,
        resample: Resample = "bilinear",
        fit: Fit = "stretch",
        on_corrupt: Literal["error", "skip"] = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._train, self._test, self._test_size = Path(train), Path(test) if test else None, test_size
        self._resample, self._fit, self._on_corrupt = resample, fit, on_corrupt
        self._classes = list(classes) if classes is not None else None

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the labels."""
        if self._classes is None:
            names = {label or self._train.resolve().name for _, label in _listing("data.train", self._train)}
            by_value = all(name.isdecimal() for name in names)
            self._classes = sorted(names, key=lambda name: (int(name) if by_value else 0, name))
        return self._classes

    def state_dict(self) -> dict[str, list[str]]:
        """Return the classes, so that a checkpoint names them without the pictures."""
        return {"classes": self.classes}

    def load_state_dict(self, state_dict: dict[str, list[str]]) -> None:
        """Take the classes of a checkpoint."""
        self._classes = state_dict["classes"]

    def read(self) -> tuple[Split, Split]:
        """Decode all pictures."""
        train = self._decode("data.train", self._train)
        if self._test is not None:
            return train, self._decode("data.test", self._test)
        test, rest = set_aside("data.test_size", self._test_size, train.labels, 0, self._stratify)
        return train.take(rest), train.take(test)

    def _picture(self, path: Path) -> np.ndarray:
        return read_picture(path, self.image_shape, self._resample, self._fit)

    def _decode(self, key: str, source: Path) -> Split:
        listed = _listing(key, source)
        number = {name: k for k, name in enumerate(self.classes)}
        if unknown := sorted({label for _, label in listed if label is not None} - number.keys()):
            raise UserError(f"{key}={source} has the class {unknown[0]!r}, which is none of {self.classes}")
        if listed[0][1] is None and len(self.classes) > 1:
            raise UserError(f"{key}={source} has no folders of classes, but there should be {self.classes}")
        images, labels, broken = [], [], []
        with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside the interpreter's lock
            decoded = pool.map(self._attempt, (path for path, _ in listed))
            for image, (_, label) in zip(decoded, listed, strict=True):
                if isinstance(image, UserError):
                    broken.append(str(image))
                else:
                    images.append(image)
                    labels.append(0 if label is None else number[label])
        if broken and self._on_corrupt == "error":
            raise UserError(
                f"{key}={source} has {len(broken)} unreadable pictures: {'; '.join(broken)}; "
                "mend or remove them, or set data.on_corrupt=skip"
            )
        if broken:
            log.warning("%s=%s: left out %d pictures: %s", key, source, len(broken), "; ".join(broken))
        if not images:
            raise UserError(f"{key}={source} has no picture that can be read")
        return Split(np.stack(images), np.array(labels, np.int64))

    def _attempt(self, path: Path) -> np.ndarray | UserError:
        try:
            return self._picture(path)
        except UserError as error:
            return error


def _listing(key: str, source: Path) -> list[tuple[Path, str | None]]:
    """List the pictures with the name of their class, None where nothing names it, in a fixed order."""
    if source.is_dir():
        return _pictures(key, source)
    if not source.is_file():
        raise UserError(f"{key}={source} is neither a folder nor a CSV file")
    return _rows(key, source)


def _pictures(key: str, folder: Path) -> list[tuple[Path, str | None]]:
    loose, classed = (
        sorted(path for path in folder.glob(pattern) if path.suffix.lower() in SUFFIXES) for pattern in ("*", "*/*")
    )
    if loose and classed:
        raise UserError(
            f"{key}={folder} holds both pictures ({loose[0].name}) and folders of pictures "
            f"({classed[0].relative_to(folder)}), which are classes: keep one kind"
        )
    if not loose and not classed:
        raise UserError(f"{key}={folder} holds no PICTURE or CLASS/PICTURE with {' or '.join(SUFFIXES)}")
    return [(path, None) for path in loose] or [(path, path.parent.name) for path in classed]


def _rows(key: str, table: Path) -> list[tuple[Path, str | None]]:
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"path", "label"} <= set(reader.fieldnames or ()):
            raise UserError(f"{key}={table} has the columns {reader.fieldnames}; it needs path and label")
        rows = list(reader)
    if not rows:
        raise UserError(f"{key}={table} lists no picture")
    if unlabelled := [row["path"] for row in rows if not row["label"]]:
        raise UserError(f"{key}={table} gives {unlabelled[0]} no label")
    return [(table.parent / row["path"], row["label"]) for row in rows]
