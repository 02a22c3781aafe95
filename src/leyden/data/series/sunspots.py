"""Monthly sunspot numbers, a series with a cycle of about eleven years."""

import numpy as np

from leyden.data.download import package_folder
from leyden.data.series.series import Series
from leyden.errors import UserError
from leyden.preparation.clocked_table import Clock, Table


class Sunspots(Series):
    """The mean number of sunspots of each month from 1749 to 2008, 3,120 in all. The file comes with statsmodels."""

    def read(self) -> Table:
        """Read the whole years of statsmodels' file without importing statsmodels."""
        advice = "data=sunspots reads a file that comes with statsmodels: pip install 'leyden[series]'"
        path = package_folder("statsmodels", advice) / "datasets/sunspots/src/sunspots_monthly.dat"
        rows = [line.split() for line in path.read_text(encoding="latin-1").splitlines()]
        years = [row for row in rows if len(row) == 13 and row[0].isdecimal()]  # the year, then twelve months
        values = np.array(years, np.float64)[:, 1:].reshape(-1, 1)
        if self.columns != ["sunspots"]:
            raise UserError(f"data.(targets, inputs) names {self.columns}; there is one series here: sunspots")
        first = np.datetime64(years[0][0], "M")
        return Table(Clock(int(first.astype(np.int64)), 1, "M"), values)
