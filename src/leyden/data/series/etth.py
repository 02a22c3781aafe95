"""ETTh1: seven hourly readings of an electricity transformer, the standard test of long-term forecasting."""

from typing import Any

from pydantic import DirectoryPath, FilePath

from leyden.data.download import Files, Remote
from leyden.data.series.series import Series
from leyden.preparation.clocked_table import Table, read_table

MIRRORS = ("https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small",)
REMOTE = Remote.on(MIRRORS, "ETTh1.csv", "sha256:f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066")


class ETTh1(Series):
    """Oil temperature (OT) and six loads of a transformer, 17,420 hours from July 2016 (Zhou et al. 2021).

    The file is `path`, or lies in `data_dir`/ett; `data_dir` is by default $LEYDEN_DATA or ~/.cache/leyden. The
    other arguments are those of `Series`.
    """

    folder = "ett"
    remotes = (REMOTE,)

    def __init__(self, path: FilePath | None = None, data_dir: DirectoryPath | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._downloads = Files(self.folder, self.remotes, data_dir=data_dir, path=path)

    def read(self) -> Table:
        """Read the file, verified by its digest."""
        path, _ = self._downloads.read_verified(REMOTE)
        return read_table(path, self._time_column, self.columns)
