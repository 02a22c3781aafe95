"""Base of the image data sets whose files are downloaded."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import DirectoryPath

from leyden.data.download import Files, Remote
from leyden.data.images.images import Images


class Downloaded(Images):
    """Images in `remotes`, which lie in `data_dir`/`folder`; `data_dir` is by default $LEYDEN_DATA or ~/.cache/leyden.

    The other arguments are those of `Images`.
    """

    folder: ClassVar[str]
    remotes: ClassVar[tuple[Remote, ...]]
    installed: ClassVar[tuple[Path, ...]] = ()  # folders where a system package puts the same files

    def __init__(self, data_dir: DirectoryPath | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._downloads = Files(self.folder, self.remotes, self.installed, data_dir)
