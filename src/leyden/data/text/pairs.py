"""Your own sentences and translations, in text files."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import FilePath

from leyden.data.split import Size, set_aside
from leyden.data.text.translation import SentencePairs, Translation
from leyden.errors import UserError
from leyden.preparation.lines import read_lines

PairFiles = FilePath | list[FilePath]  # one file with tabs, or two files aligned by line


class Pairs(Translation):
    """Your own sentences and translations, in text files of UTF-8, plain or .gz.

    `train`, `val` and `test` are each one file with a sentence, a tab, and its translation on every line (what follows
    a second tab is not read), or two files, of which each line of the second translates the same line of the first.
    Without `val` or `test`, `val_size` and `test_size` of the pairs in `train` are set aside, always the same ones for
    the same files. The other arguments are those of `Translation`.
    """

    def __init__(
        self,
        train: PairFiles,
        val: PairFiles | None = None,
        test: PairFiles | None = None,
        val_size: Size = 0.1,
        test_size: Size = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._paths = {"train": train, "val": val, "test": test}
        self._sizes = {"val": val_size, "test": test_size}

    def read(self) -> dict[str, SentencePairs]:
        """Read the files, and set aside the parts that have no file."""
        splits = {name: read_pairs(f"data.{name}", files) for name, files in self._paths.items() if files}
        for seed, (name, size) in enumerate(self._sizes.items()):
            if name not in splits:
                train = splits["train"]
                labels = np.zeros(len(train.source), np.int64)
                part, rest = set_aside(f"data.{name}_size", size, labels, seed, stratify=False)
                splits[name], splits["train"] = train.take(part), train.take(rest)
        return splits


def read_pairs(key: str, files: PairFiles) -> SentencePairs:
    """Read a tab-separated file, or two files aligned by line; `key` names them in errors."""
    if not isinstance(files, str | Path):
        if len(files) != 2:
            raise UserError(f"{key} names {len(files)} files: name one with tabs, or two with the same lines")
        return SentencePairs.from_lines(*(read_lines(Path(file)) for file in files), (str(files[0]), str(files[1])))
    rows = [line.split("\t") for line in read_lines(Path(files))]
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise UserError(f"{files}:{number} has no tab between a sentence and its translation")
    return SentencePairs.from_lines([row[0] for row in rows], [row[1] for row in rows], (str(files), str(files)))
