"""Base of the data sets whose files are downloaded: where those lie, and that they are whole."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import DirectoryPath

from leyden.data.download import Remote, data_root, download
from leyden.data.images import Images
from leyden.errors import UserError


class Downloaded(Images):
    """Images in `remotes`, which lie in `data_dir`/`folder`; `data_dir` is by default $LEYDEN_DATA or ~/.cache/leyden.

    The other arguments are those of `Images`.
    """

    folder: ClassVar[str]
    remotes: ClassVar[tuple[Remote, ...]]
    installed: ClassVar[tuple[Path, ...]] = ()  # folders where a system package puts the same files

    def __init__(self, data_dir: DirectoryPath | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._data_dir = data_dir

    @classmethod
    def find(cls, remote: Remote, root: Path) -> Path | None:
        """Return where the file is, if it is in `root` or installed."""
        paths = (folder / remote.name for folder in (root / cls.folder, *cls.installed))
        return next((path for path in paths if path.is_file()), None)

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process of each node."""
        root = self._root()
        for remote in self.remotes:
            if self.find(remote, root) is None:
                download(remote, root / self.folder / remote.name)

    def content(self, remote: Remote) -> bytes:
        """Return what the file holds, proved by its digest."""
        root = self._root()
        path = self.find(remote, root)
        if path is None:
            raise UserError(
                f"{root / self.folder / remote.name} does not exist: call prepare_data(), or put the file there by hand"
            )
        return remote.read(path)

    def _root(self) -> Path:
        """The folder of all data: the one given, which must exist, or the default."""
        if self._data_dir is None:
            return data_root()
        root = Path(self._data_dir).expanduser()
        if not root.is_dir():
            raise UserError(f"data.data_dir={self._data_dir} is not a folder: create it or name another")
        return root
