"""ETTh1: seven hourly readings of an electricity transformer, the standard test of long-term forecasting."""

from pathlib import Path
from typing import Any

from pydantic import FilePath

from leyden.data.download import Remote, data_root, download
from leyden.data.series import Series
from leyden.data.series_file import Table, read_table

REMOTE = Remote(
    "ETTh1.csv",
    "sha256:f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    ("https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/ETTh1.csv",),
)


class ETTh1(Series):
    """Oil temperature (OT) and six loads of a transformer, 17,420 hours from July 2016 (Zhou et al. 2021).

    The file is `path`, or downloaded to $LEYDEN_DATA/ett, by default ~/.cache/leyden/ett. The other arguments
    are those of `Series`.
    """

    def __init__(self, path: FilePath | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._path = Path(path) if path else data_root() / "ett" / REMOTE.name

    def prepare_data(self) -> None:
        """Download the file if it is missing; Lightning calls this in one process of each node."""
        download(REMOTE, self._path)

    def read(self) -> Table:
        """Read the file, proved by its digest."""
        REMOTE.read(self._path)
        return read_table(self._path, self._time, self.columns)
