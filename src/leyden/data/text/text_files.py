"""Texts that need no download: your own files, and the documentation that comes with Python."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import DirectoryPath, Field, FilePath

from leyden.data.text.text import Fraction, Text, cut_end
from leyden.errors import UserError
from leyden.preparation.texts import read_text

TestSize = Annotated[float, Field(ge=0, lt=1)]  # 0: there is no test part


class TextFiles(Text):
    """Your own text: a UTF-8 file, or a folder whose .txt files are sorted by path and joined with newlines.

    The last fraction `test_size` of the characters is the test set, and the fraction `val_size` before it is the
    validation set. The other arguments are those of `Text`.
    """

    def __init__(
        self, path: FilePath | DirectoryPath, val_size: Fraction = 0.1, test_size: TestSize = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._path, self._val_size, self._test_size = Path(path), val_size, test_size

    def source(self) -> list[Any]:
        """Return the sha256 of the files, and how they are split."""
        contents = (hashlib.sha256(path.read_bytes()).hexdigest() for path in self._paths())
        return [*contents, self._val_size, self._test_size]

    def read(self) -> dict[str, str]:
        """Read and join the files."""
        text = "\n".join(map(read_text, self._paths()))
        if not text.strip():
            raise UserError(f"data.path={self._path} is empty")
        return cut_end(text, self._val_size, self._test_size)

    def _paths(self) -> list[Path]:
        if self._path.is_file():
            return [self._path]
        if not self._path.is_dir():
            raise UserError(f"data.path={self._path} does not exist")
        paths = sorted(self._path.rglob("*.txt"))
        if not paths:
            raise UserError(f"data.path={self._path} holds no .txt file")
        return paths


class PyDocs(Text):
    """The prose of Python's own documentation, as its `help()` shows it; the text differs a little by Python version.

    The last fraction `test_size` of the characters is the test set, and the fraction `val_size` before it is the
    validation set. The other arguments are those of `Text`.
    """

    def __init__(self, val_size: Fraction = 0.1, test_size: TestSize = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._val_size, self._test_size = val_size, test_size

    def source(self) -> list[Any]:
        """Return the sha256 of the text, and how it is split."""
        return [hashlib.sha256(_topics().encode()).hexdigest(), self._val_size, self._test_size]

    def read(self) -> dict[str, str]:
        """Join the topics, sorted by name."""
        return cut_end(_topics(), self._val_size, self._test_size)


def _topics() -> str:
    from pydoc_data.topics import topics  # imported here, because it reads half a megabyte

    return "\n".join(topics[name] for name in sorted(topics))
