"""Monthly sunspot numbers, a series with a cycle of about eleven years."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from leyden.data.series.series import Series
from leyden.data.series.table import Clock, Table
from leyden.errors import UserError


class Sunspots(Series):
    """The mean number of sunspots of each month from 1749 to 2008, 3,120 in all; the file is that of statsmodels."""

    def read(self) -> Table:
        """Read the years that are whole, without importing statsmodels."""
        spec = find_spec("statsmodels")
        if spec is None or spec.origin is None:
            raise UserError("data=sunspots reads a file that statsmodels carries: pip install 'leyden[series]'")
        path = Path(spec.origin).parent / "datasets" / "sunspots" / "src" / "sunspots_monthly.dat"
        rows = [line.split() for line in path.read_text(encoding="latin-1").splitlines()]
        years = [row for row in rows if len(row) == 13 and row[0].isdecimal()]  # the year, then twelve months
        values = np.array(years, np.float64)[:, 1:].reshape(-1, 1)
        if self.columns != ["sunspots"]:
            raise UserError(f"data.(targets, inputs) names {self.columns}; there is one series here: sunspots")
        first = np.datetime64(years[0][0], "M")
        return Table(Clock(int(first.astype(np.int64)), 1, "M"), values)
